"""Recovery: win back accuracy after a reduction, from unlabeled images."""
