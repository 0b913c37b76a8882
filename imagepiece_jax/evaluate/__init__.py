"""Accuracy of a model on labeled images, its statistics, and comparisons of models.

An encoder's vectors and their neighbors are in `inference`.
"""
