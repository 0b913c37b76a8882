"""Stores of images, a file each; `registry` opens a `Source` by its name."""
