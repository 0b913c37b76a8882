"""Images from sources to batches: opened, decoded, cropped, augmented, normalized.

The choice of evaluation images is in `evaluate`.
"""
