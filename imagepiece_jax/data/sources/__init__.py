"""Where images come from: folders, csv tables, TFDS, Hugging Face, the digits.

`registry` opens a source by its name; every source is a `data.source.Source`.
"""
