"""Records of recoveries that nobody has computed."""

import dataclasses

from imagepiece_jax.models.recovery_record import Recovery
from tests.models import tiny

TOME = {"name": "tome", "r": 3}
FIGURES = {
    "parameters": "biases",
    "images": 32,
    "held_out": 16,
    "steps": 8,
    "batch_size": 16,
    "seed": 0,
    "seconds": 1.0,
    "measure": "KL",
    "before": 0.25,
    "after": 0.125,
    "interval": (-0.15, -0.1),
    "agreement": (80.0, 90.0),
    "curve": ((0, 0.25), (8, 0.125)),
    "stopped": False,
}


def recovered(vit=None, changed=True, **fields):
    """A Pretrained that is said to have been recovered in its own form."""
    vit = vit or tiny.pretrained(TOME)
    fields = {
        "reduction": dict(vit.reduction),
        "image_size": vit.image_size,
        "depth": vit.model.depth,
        "weights": "public.pth",
        "changed": changed,
    } | fields
    return dataclasses.replace(vit, recovery=Recovery(**FIGURES, **fields))


def saved(folder, **fields):
    """The folder of a recovered model as `save` writes it."""
    import imagepiece_jax

    return imagepiece_jax.save(folder, recovered(**fields))
