"""Pictures of what happens to the tokens of an image."""
