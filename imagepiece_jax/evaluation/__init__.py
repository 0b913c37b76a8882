"""Accuracy of models, its images, and comparisons of models.

An encoder's vectors, and how near they are to the dense model's, are in `inference`.
"""
