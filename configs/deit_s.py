"""DeiT by its authors' recipe, dense or with any reduction: SIZE or SIZE,REDUCTION.

python train.py --config configs/deit_s.py:deit_ti,tome:r=8
    0.92 GMACs, 101 final tokens, 2.13 EFLOP, no published acc1

A training with its own recipe, its own stem or a teacher has a file beside this one.
The published figures belong to these arguments (-: no published acc1; clustering is not
in the GMACs; DiffRate's and PiToMe's authors use trained weights as they are):

argument               GMACs  final tokens  EFLOP  published acc1
deit_ti                1.25   197           2.89   72.2
deit_s                 4.60   197           10.6   79.9
deit_b                 17.56  197           40.5   81.8
deit_s,atc             2.98   68            6.87   -
deit_ti,atc            0.81   68            1.86   -
deit_s,attended        2.98   68            6.87   -
deit_ti,attended       0.81   68            1.86   -
deit_s,diffrate        2.90   3             6.70   79.538
deit_ti,diffrate       0.81   3             1.86   -
deit_b,diffrate        11.52  3             26.6   81.498
deit_s,dpc_knn         2.88   68            6.64   -
deit_ti,dpc_knn        0.78   68            1.79   -
deit_s,grid_pooling    2.87   50            6.62   -
deit_ti,grid_pooling   0.78   50            1.80   -
deit_s,mctf            2.58   21            5.94   80.1
deit_ti,mctf           0.70   21            1.61   72.7
deit_s,peaks           2.98   68            6.87   -
deit_ti,peaks          0.81   68            1.86   -
deit_s,pitome          2.76   69            6.37   -
deit_ti,pitome         0.75   69            1.72   -
deit_s,random          3.00   69            6.91   -
deit_ti,random         0.81   69            1.87   -
deit_s,tofu            2.98   81            6.86   -
deit_ti,tofu           0.80   81            1.85   -
deit_s,token_learner   2.86   17            6.61   79.01 (ImagePiece's authors)
deit_ti,token_learner  0.78   17            1.81   -
deit_s,token_pooling   2.88   68            6.64   71.35 (ImagePiece's authors)
deit_ti,token_pooling  0.78   68            1.79   -
deit_s,tome            2.70   41            6.23   79.36
deit_ti,tome           0.73   41            1.69   71.27

DeiT-S in 90 epochs instead of 300, by big_vision's vit_s16_i1k (Beyer et al., 2022,
"Better plain ViT baselines for ImageNet-1k"). It has not been run here. Its authors
reach 76.5 with two parts that this model lacks: fixed sin-cos positions, and a hidden
layer with tanh in the head.

python train.py --config configs/deit_s.py:vit_s16_i1k
    4.57 GMACs, 196 final tokens, 3.16 EFLOP, published acc1 76.5 (not run here)

ImagePiece's convolutional stem alone, as a control; not published:

python train.py --config configs/deit_s.py --config.model.stem=conv
    4.98 GMACs, 197 final tokens, 11.5 EFLOP, no published acc1
"""

from configs import base
from imagepiece_jax.common.checks import check_choice

SHORT_RECIPE = "vit_s16_i1k"  # DeiT-S with another training
SIZES = ("deit_ti", "deit_s", "deit_b", "vit_mini", SHORT_RECIPE)


def get_config(argument="deit_s"):
    """A size, or a size and a reduction: "deit_ti,tome:r=8"."""
    size, _, reduction = argument.partition(",")
    check_choice("size", size, SIZES)
    config = base.get_config()
    config.reduction = reduction or "none"
    if size == SHORT_RECIPE:
        apply_short_recipe(config)
    else:
        config.model.name = size
    return config


def apply_short_recipe(config):
    """Set the fields in which google-research/big_vision differs from DeiT's recipe.

    Source: its configs/vit_s16_i1k.py, optax.py and pp/autoaugment.py. Batch, betas and
    the learning rate of 1e-3 are equal. Three differences stay: big_vision's cosine
    begins after the warm-up; its RandAugment also has Cutout and never weakens color,
    contrast, brightness or sharpness; it holds out one percent of the training images.
    """
    config.epochs = 90
    config.min_lr = 0.0
    config.warmup_lr = 0.0
    config.warmup_epochs = 10_000 / 1251  # 10,000 steps
    config.weight_decay = 0.1  # there 1e-4, without the factor of the rate 1e-3
    config.clip_grad_norm = 1.0
    config.label_smoothing = 0.0
    config.mixup = 0.2
    config.cutmix = 0.0
    config.ema_decay = 0.0
    config.model.arch.class_token = False  # the head reads the mean over patches
    config.model.drop_path_rate = 0.0
    config.model.arch.gelu = "tanh"
    config.model.mean = config.model.std = (0.5, 0.5, 0.5)
    config.data.area = (0.05, 1.0)
    config.data.repeats = 1
    # There RandAugment(2, 10): always two operations. At magnitude 10 its Posterize
    # keeps four bits; timm's keeps none, and would turn one image in ten black.
    config.augment.prob = 1.0
    config.augment.magnitude = 9.0
    config.augment.magnitude_std = 0.0
    config.augment.erase_prob = 0.0
