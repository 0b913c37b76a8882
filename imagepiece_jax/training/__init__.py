"""Training, from a config to the last checkpoint; `cluster` keeps a run alive."""
