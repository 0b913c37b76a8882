"""Token reduction: methods, reducers, token counts, scores and merging.

Nothing here depends on a model's weights or on images.
"""
