"""Speeds of models, relative to the dense model in the same run."""
