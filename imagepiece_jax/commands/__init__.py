"""Commands of `imagepiece`, one per file. A command is a typed function."""
