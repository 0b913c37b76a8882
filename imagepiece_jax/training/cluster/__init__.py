"""Keeping a run alive: checkpoints, signals, restarts, several hosts.

Nothing here knows what is trained.
"""
