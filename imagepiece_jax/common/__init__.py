"""Tools for every room; nothing here depends on models or runs."""
