"""Tiny options of training from scratch."""

from experiments.scratch import systems

TINY = {
    "image_size": 16,
    "patch": 4,
    "width": 16,
    "depth": 4,
    "epochs": 2,
    "train_batch_size": 8,
}


def tiny_options(**fields) -> systems.Options:
    """Options of a model that trains in a moment."""
    return systems.Options(**TINY | fields)
