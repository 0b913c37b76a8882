"""ImagePiece + DynamicViT on DeiT-S: 2.87 GMACs, 61 final tokens, published acc1 80.11.

python train.py --config configs/deit_s_imagepiece_dynamicvit.py
--config.init.weights=DENSE --config.teacher.weights=DENSE (dense, with the conv stem)
"""

from configs import deit_s_dynamicvit, deit_s_imagepiece


def get_config():
    """ImagePiece, but a learned score decides what is pruned; DynamicViT's training."""
    config = deit_s_imagepiece.get_config()
    config.reduction.name = "imagepiece_dynamicvit"
    config.reduction.mode = "mask"  # training masks tokens, or removes them: "topk"
    config.reduction.predictor_pos = "mid"  # before the MLP, or the whole block: "pre"
    config.reduction.update(deit_s_dynamicvit.learning())
    config.update(deit_s_dynamicvit.fine_tuning())
    return config
