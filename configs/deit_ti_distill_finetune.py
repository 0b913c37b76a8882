"""DeiT-Ti adapted to a reduction: it learns to answer as the dense model does.

python train.py --config configs/deit_ti_distill_finetune.py \\
        --config.init.weights=FILE --config.teacher.weights=FILE
    0.65 GMACs, 61 final tokens, 0.246 EFLOP, no published acc1
python train.py --config configs/deit_ti_distill_finetune.py:tome \\
        --config.init.weights=FILE --config.teacher.weights=FILE
    0.62 GMACs, 11 final tokens, 0.240 EFLOP, no published acc1
python train.py --config configs/deit_ti_distill_finetune.py:evit \\
        --config.init.weights=FILE --config.teacher.weights=FILE
    0.62 GMACs, 26 final tokens, 0.240 EFLOP, no published acc1

The teacher is the same file, or a better model of the same classes. Labels are not
read: any images will do, those of PATH/train without folders of classes, too.

python train.py --config configs/deit_ti_distill_finetune.py \\
        --config.init.weights=FILE --config.teacher.weights=FILE \\
        --config.data.name=folder:PATH --config.batch_size=64 --config.lr=2.4e-4 \\
        --config.model.dtype=float32
"""

from configs import deit_ti_finetune
from imagepiece_jax.errors import one_of

REDUCTIONS = {"imagepiece": {}, "tome": {"r": 16}, "evit": {"keep_rate": 0.5}}


def get_config(reduction="imagepiece"):
    """ImagePiece as published, ToMe at r = 16 or EViT at keep rate .5."""
    config = deit_ti_finetune.get_config()
    config.reduction.update(
        name=reduction, **one_of("reduction", reduction, REDUCTIONS)
    )
    config.distill.kind = "soft"
    config.distill.temperature = 1.0  # the answers themselves are to stay
    config.distill.weight = 1.0
    return config
