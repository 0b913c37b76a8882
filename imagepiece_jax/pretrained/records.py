"""Records of what the config files of published weights say, and names of both."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from imagepiece_jax.models.config import ModelConfig

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
PROCESSOR = "processor_config.json"  # of images and of text, since transformers 5
OURS = "imagepiece_jax"  # the part of a config.json that is this package's own
SILUS = {"silu": "exact", "swish": "exact"}  # of a gated MLP, which has no GELU
# transformers' activations by their names; those of one kind differ in rounding alone.
GELUS = {"gelu": "exact", "gelu_python": "exact", "quick_gelu": "quick"}
GELUS |= dict.fromkeys(("gelu_pytorch_tanh", "gelu_python_tanh"), "tanh")
GELUS |= dict.fromkeys(("gelu_new", "gelu_fast", "gelu_accurate"), "tanh")


@dataclasses.dataclass(frozen=True)
class Tower:
    """How a language model reads the vision tower that it holds."""

    depth: int | None = None  # blocks that are run, without a norm; None: all there are
    blocks: int | None = None  # that the tower has
    gelu: str = "exact"  # between layers of the projector
    prefix: bool = False  # whether the projector reads the class token, too
    layers: int | None = None  # of the projector; None: those in the file
    bias: bool | None = None  # whether the projector has biases; None: as in the file


@dataclasses.dataclass(frozen=True)
class HubConfig:
    """What a published model's config files say."""

    config: ModelConfig  # what no tensor shows
    sizes: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # in tensors too
    # Fields of a Preprocessing but the size.
    preprocessing: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    reduction: Mapping[str, Any] | None = None  # of a model that this package saved
    class_names: tuple[str | None, ...] | None = None  # by label, None: without a name
    untrained: bool = False  # whether its selectors were drawn, not learned
    tower: Tower | None = None  # of a model that is one, beside a projector
