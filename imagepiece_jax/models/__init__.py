"""The ViT and its parts, its cost, and Pretrained, a model with its weights.

The `weights` package reads and writes weights files.
"""
