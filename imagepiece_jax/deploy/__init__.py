"""What is done with trained models: load, save, recover, optimize, export, compare.

It imports the core (models, reductions, data, training), which never imports it.
"""
