"""What is computed: the ViT and its parts, its cost, and a model with its weights.

Files of weights are read in `weights`.
"""
