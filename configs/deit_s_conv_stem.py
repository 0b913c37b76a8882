"""DeiT-S with the conv stem and no reduction: 4.98 GMACs, the control of ImagePiece.

What the stem alone brings; its accuracy is not published.
python train.py --config configs/deit_s_conv_stem.py
"""

from configs import deit_s


def get_config():
    """The dense control."""
    config = deit_s.get_config()
    config.model.stem = "conv"
    return config
