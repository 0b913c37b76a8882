"""One file a command of `imagepiece`: a typed function that calls a room and prints."""
