"""Tools for every room: files, processes, devices, random keys, progress, signals.

Nothing here depends on models or runs.
"""
