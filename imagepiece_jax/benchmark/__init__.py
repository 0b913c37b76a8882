"""Speeds of models, beside the dense model in the same run."""
