"""EViT: keep the tokens the class token attends to (Liang et al., ICLR 2022).

python train.py --config configs/deit_s_evit.py
    3.00 GMACs, 69 final tokens, 7.62 EFLOP, published acc1 79.4
python train.py --config configs/deit_s_evit.py \\
    --config.reduction=evit:fuse_token=True:rate_warmup_start=10:rate_warmup_epochs=100
    3.03 GMACs, 72 final tokens, 7.69 EFLOP, published acc1 79.5
python train.py --config configs/deit_s_evit.py:deit_ti
    0.81 GMACs, 69 final tokens, 2.07 EFLOP, published acc1 71.70
"""

from configs import deit_s


def get_config(size="deit_s"):
    """ImagePiece's baseline: other tokens are dropped, not fused into one."""
    # 10 epochs keep all tokens; in the next 100 the keep rate falls to its value.
    warm_up = "rate_warmup_start=10:rate_warmup_epochs=100"
    return deit_s.get_config(f"{size},evit:{warm_up}")
