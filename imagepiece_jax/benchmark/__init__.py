"""How fast models run, beside the dense model in the same run."""
