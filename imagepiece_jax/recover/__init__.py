"""Accuracy back from unlabeled images, after a reduction."""
