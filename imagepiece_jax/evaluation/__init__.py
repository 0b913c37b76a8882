"""Accuracy and fidelity of models, their statistics, and comparisons of models.

An encoder's vectors are in `inference`.
"""
