"""Images from their sources to batches: opened, decoded, cropped, augmented.

How a model normalizes is here, too; which images an evaluation reads is in `evaluate`.
"""
