"""ViTConfig, the complete record of a model, and Execution, how the model computes."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from imagepiece_jax.common import checks
from imagepiece_jax.common.image_size import (
    ImageSize,
    checked_size,
    image_sides,
    patch_grid,
)
from imagepiece_jax.data import normalize
from imagepiece_jax.data.normalize import Normalization, NormalizedImages, PixelImages
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.errors import InputError
from imagepiece_jax.kernels.attention import Backend
from imagepiece_jax.models.architecture import DEIT, Architecture
from imagepiece_jax.models.layers import STEM_KINDS, conv_stem_widths

MAX_WIDTH = 10**5  # upper bound of widths and depths, far above any model
IMAGENET_MEAN = (0.485, 0.456, 0.406)  # ImageNet, RGB, pixels in [0, 1]
IMAGENET_STD = (0.229, 0.224, 0.225)

# Problem types, by transformers' names.
SINGLE_LABEL = "single_label_classification"
MULTI_LABEL = "multi_label_classification"
REGRESSION = "regression"  # its outputs are numbers, not probabilities
# CLIP's, whose outputs are an image's vector; transformers has no such type
PROJECTION = "projection"
PROBLEM_TYPES = (SINGLE_LABEL, MULTI_LABEL, REGRESSION, PROJECTION)


@dataclasses.dataclass(frozen=True)
class Head:
    """A model's head, as `ViTConfig.head` returns it."""

    num_classes: int  # number of outputs; 0: no head
    problem_type: str = SINGLE_LABEL  # the outputs' meaning, from PROBLEM_TYPES

    @property
    def is_projection(self) -> bool:
        """Whether the head is a projection, as in CLIP."""
        return self.num_classes > 0 and self.problem_type == PROJECTION

    @property
    def is_classifier(self) -> bool:
        """Whether the head has classes or a regression's numbers: no projection."""
        return self.num_classes > 0 and self.problem_type != PROJECTION

    @property
    def is_single_label(self) -> bool:
        """Whether the head gives one class per image, so that images have labels."""
        return self.num_classes > 0 and self.problem_type == SINGLE_LABEL

    @property
    def has_classes(self) -> bool | None:
        """Whether the outputs are logits of classes; None: a regression's numbers."""
        if self.num_classes and self.problem_type == REGRESSION:
            return None
        return self.is_classifier

    @property
    def activation(self) -> str | None:
        """The function from logits to probabilities: "softmax", "sigmoid" or None."""
        if not self.has_classes:
            return None
        # A single class gets a sigmoid, because its softmax is 1 for any image.
        if self.problem_type == MULTI_LABEL or self.num_classes == 1:
            return "sigmoid"
        return "softmax"

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Class probabilities. [.., C] -> [.., C].

        Multi-label probabilities need not add up to 1.
        Raises InputError for outputs that are no classes, and for infinities and NaN.
        """
        if not np.isfinite(logits).all():
            raise InputError("the model's outputs are not finite")
        if self.activation is None:
            raise InputError(f"problem_type is {self.problem_type!r}, without classes")
        if self.activation == "sigmoid":
            return 0.5 * (1 + np.tanh(logits / 2))  # never overflows
        # The largest logit becomes 0, so no exponential overflows.
        exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return exponentials / exponentials.sum(axis=-1, keepdims=True)

    def check_single_label(self, weights_title: str, reader: str) -> None:
        """Refuse multi-label and regression weights for a `reader` of one label."""
        if self.problem_type != SINGLE_LABEL:
            problem = f"problem_type is {self.problem_type!r}"
            raise InputError(f"{weights_title}: {problem}; {reader} needs one label")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """A vision transformer: sizes, parts, and preprocessing of its images.

    `imagepiece_jax.read_config` makes a config from a public name or from files.
    `dataclasses.replace` changes fields.

    Raises InputError for fields that do not go together.
    """

    embed_dim: int  # token width
    depth: int  # block count
    num_heads: int  # attention heads per block
    patch_size: int  # pixels a side
    mlp_ratio: float = 4.0  # MLP hidden width / embed_dim
    stem: str = "patch"  # or "conv" (`models.layers`)
    arch: Architecture = DEIT
    num_classes: int = 1000  # 0: no head
    problem_type: str = SINGLE_LABEL  # the logits' meaning, from PROBLEM_TYPES
    preprocessing: Preprocessing  # image size, resizing and crop
    mean: tuple[float, float, float]  # RGB, pixels in [0, 1]
    std: tuple[float, float, float]  # likewise
    # default of proportional attention in reductions; None: the method's default. MAE's
    # weights work without proportional attention (Bolya et al. 2023)
    prop_attn: bool | None = None
    name: str | None = None  # a public model's name; selects DiffRate's schedules

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = checks.replace_lists(getattr(self, field.name))
            object.__setattr__(self, field.name, value)
        for name in ("embed_dim", "depth", "num_heads", "patch_size"):
            checks.check_range(name, getattr(self, name), 1, MAX_WIDTH, whole=True)
        checks.check_range("mlp_ratio", self.mlp_ratio, above=0, most=MAX_WIDTH)
        checks.check_range("num_classes", self.num_classes, 0, whole=True)
        checks.check_choice("problem_type", self.problem_type, PROBLEM_TYPES)
        checks.check_choice("prop_attn", self.prop_attn, (None, True, False))
        normalization = Normalization(self.mean, self.std)
        object.__setattr__(self, "mean", normalization.mean)
        object.__setattr__(self, "std", normalization.std)
        arch = self.arch
        checks.check_choice("stem", self.stem, STEM_KINDS)
        if self.stem == "conv":
            conv_stem_widths(self.embed_dim, self.patch_size)
        pool = arch.pool
        pool_heads = arch.pool_heads or self.num_heads
        width = self.embed_dim
        lacks_token = pool == "token" and not arch.class_token
        lacks_bias = self.stem == "conv" and not arch.patch_bias
        checks.refuse_any(
            (lacks_token, "pool is 'token', which needs class_token"),
            (pool != "token" and arch.dist_token, "dist_token needs pool 'token'"),
            (pool == "none" and self.num_classes, "pool 'none' needs num_classes=0"),
            (width % self.num_heads, f"num_heads must divide embed_dim, {width}"),
            (pool == "map" and width % pool_heads, f"pool_heads must divide {width}"),
            (width * self.mlp_ratio < 1, "mlp_ratio makes an MLP of width 0"),
            (lacks_bias, "stem is 'conv', which needs patch_bias"),
            (arch.rotary and self.head_dim % 4, "rotary needs a head_dim of 4, 8, .."),
        )

    @property
    def image_size(self) -> ImageSize:
        """Pixels a side, or (height, width)."""
        return self.preprocessing.image_size

    @property
    def head(self) -> Head:
        """What the outputs mean."""
        return Head(self.num_classes, self.problem_type)

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.embed_dim // self.num_heads

    @property
    def grid(self) -> tuple[int, int]:
        """(height, width) of an image in whole patches."""
        return patch_grid(self.image_size, self.patch_size, cut=True)

    @property
    def num_tokens(self) -> int:
        """Tokens per image in the first block, with the prefix."""
        return self.arch.prefix + math.prod(self.grid)

    def as_normalized(self, images: PixelImages | NormalizedImages) -> NormalizedImages:
        """Normalize pixels for the model; floats are normalized already."""
        if images.dtype != jnp.uint8:
            return images
        return normalize.normalize(images, self.mean, self.std)

    def at_size(self, image_size: ImageSize) -> "ViTConfig":
        """The same config at another image size, in whole patches."""
        image_size = checked_size(image_size)
        # A published size need not be whole patches, so the present size passes as is.
        if image_sides(image_size) != image_sides(self.image_size):
            patch_grid(image_size, self.patch_size)
        return self.with_preprocessing(image_size=image_size)

    def with_preprocessing(self, **fields: Any) -> "ViTConfig":
        """The same config with changed Preprocessing fields."""
        preprocessing = dataclasses.replace(self.preprocessing, **fields)
        return dataclasses.replace(self, preprocessing=preprocessing)

    def with_arch(self, **fields: Any) -> "ViTConfig":
        """The same config with changed Architecture fields."""
        return dataclasses.replace(self, arch=dataclasses.replace(self.arch, **fields))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Execution:
    """How a ViT computes, without changing the model itself."""

    dtype: jnp.dtype = jnp.dtype("float32")  # layer dtype
    # parts that are float32 in any dtype, by name: "patch_embed" with the positions,
    # "blocks_3", "norm", "attn_pool"
    float32_parts: tuple[str, ...] = ()
    attention_impl: Backend = "xla"  # by `kernels.attention.resolve_backend`
    # the requested kernel, possibly "auto"; `attention_impl` is its choice on this
    # device
    attention: str = dataclasses.field(default="auto", compare=False)
    # how log(size) is added to the attention logits, in `size_direction.SIZE_ENCODINGS`
    size_encoding: str = "bias"
    drop_path_rate: float = 0.0  # probability of dropping the last block's branches
    axis_name: str | None = None  # device axis for batch norm synchronization
    remat: bool = False  # recompute activations in the backward pass
    # 0: the trained stem; p > 0: a FoldedStem whose first convolution reads p pixels at
    # once
    folded: int = 0
    # The last block computes the head's tokens only, if they are in the prefix. Logits
    # and pooled vectors need no more.
    head_only: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", jnp.dtype(self.dtype))
        checks.check_range("drop_path_rate", self.drop_path_rate, 0, below=1)


FLOAT32 = Execution()
