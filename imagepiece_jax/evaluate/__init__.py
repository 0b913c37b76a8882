"""Accuracy of a model on labeled images, its statistics, and comparisons of models.

The vectors of an encoder and their neighbors are in `inference`.
"""
