"""What every room may use: files, processes, devices, random keys, progress, signals.

Nothing here knows images, models or runs.
"""
