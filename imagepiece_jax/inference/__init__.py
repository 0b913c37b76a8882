"""Compiled programs, predictions, vectors, and how near they are to the dense model's.

Programs for other runtimes are in `imagepiece_jax.exporters`.
"""
