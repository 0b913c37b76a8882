"""Commands of `imagepiece`, one per file: a typed function that prints."""
