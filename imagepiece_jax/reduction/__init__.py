"""Which tokens go where: methods, how many tokens stay, scores, merging.

Nothing here knows a model's weights or an image.
"""
