"""Pictures of an image's tokens, block by block.

`trace` follows the tokens, `token_pictures` draws, `figure` and `html` write files.
"""
