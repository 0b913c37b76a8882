"""Keeping a run alive: checkpoints, signals, restarts, several hosts."""
