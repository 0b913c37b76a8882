"""DeiT-Ti, dense: 1.25 GMACs, published acc1 72.2.

python train.py --config configs/deit_ti.py
"""

from configs import base


def get_config():
    """The dense model."""
    config = base.get_config()
    config.model.name = "deit_ti"
    return config
