"""DeiT-B, dense: 17.56 GMACs, published acc1 81.8.

python train.py --config configs/deit_b.py
"""

from configs import base


def get_config():
    """The dense model."""
    config = base.get_config()
    config.model.name = "deit_b"
    return config
