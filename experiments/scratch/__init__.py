"""Models trained from scratch with each reduction, at equal cost, over seeds."""
