"""DeiT-S, dense: 4.60 GMACs, published acc1 79.9.

python train.py --config configs/deit_s.py
"""

from configs import base


def get_config():
    """The dense model."""
    config = base.get_config()
    config.model.name = "deit_s"
    return config
