"""Compiled programs, predictions and feature vectors of trained models.

Programs for other runtimes are in `imagepiece_jax.exporters`.
"""
