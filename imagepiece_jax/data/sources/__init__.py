"""Image sources: folders, csv tables, TFDS, Hugging Face, the digits.

`registry` opens a `data.source.Source` by name.
"""
