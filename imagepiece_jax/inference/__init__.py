"""Compiled programs, predictions and feature vectors of trained models.

Files for other runtimes are written in `export`.
"""
