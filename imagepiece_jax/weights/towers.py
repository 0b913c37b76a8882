"""Vision towers in language models, by their config.json.

A new model is a row of HOSTS; its tensors are named by `layouts.TOWER_IN_HOST` and what
follows it.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from imagepiece_jax.errors import InputError, one_of
from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.projector import TowerReading

Fields = Mapping[str, Any]  # of a JSON file
# transformers' activations by their names; those of one kind differ only in rounding.
GELUS = {"gelu": "exact", "gelu_python": "exact", "quick_gelu": "quick"}
GELUS |= dict.fromkeys(("gelu_pytorch_tanh", "gelu_python_tanh"), "tanh")
GELUS |= dict.fromkeys(("gelu_new", "gelu_fast", "gelu_accurate"), "tanh")


@dataclasses.dataclass(frozen=True)
class Host:
    """A model type of transformers that holds a vision tower."""

    kinds: tuple[str, ...]  # model types of the tower, the usual one first
    # of the tower, where the config has none
    fields: Fields = dataclasses.field(default_factory=dict)
    # (config, fields of the tower, parts up to an earlier block than the last) -> how
    # the language model reads it; None: there is no projector
    tower: Callable[[Fields, Fields, Architecture | None], TowerReading] | None = None


def _llava(config: Fields, fields: Fields, inner: Architecture | None) -> TowerReading:
    """The last block is left out, unless the config names another layer."""
    field = "vision_feature_layer"
    blocks = fields["num_hidden_layers"]
    layer = config.get(field, -2)
    depth = 0
    if type(layer) is int:
        depth = layer
        if layer < 0:  # counted from the end
            depth += blocks + 1
    if not 1 <= depth <= blocks:
        raise InputError(field, layer, f"one layer, 1 to {blocks}, and -{blocks} to -1")
    field = "vision_feature_select_strategy"
    strategy = config.get(field, "default")
    prefix = one_of(field, strategy, {"default": False, "full": True})
    if not prefix and not inner.class_token:
        problem = "is 'default', which drops a class token, and the tower has none"
        raise InputError(field, strategy, "'full'", problem=problem)
    act = config.get("projector_hidden_act", "gelu")
    return TowerReading(
        depth,
        blocks,
        gelu=one_of("projector_hidden_act", act, GELUS),
        prefix=prefix,
        layers=2,
        bias=bool(config.get("multimodal_projector_bias", True)),
    )


_L14 = dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16)
_L14 |= dict(image_size=336, patch_size=14, intermediate_size=4096)
_SO14 = dict(hidden_size=1152, num_hidden_layers=27, num_attention_heads=16)
_SO14 |= dict(image_size=224, patch_size=14, intermediate_size=4096)
PALIGEMMA = TowerReading(layers=1, bias=True)
HOSTS = {
    "clip": Host(("clip_vision_model",)),
    "siglip": Host(("siglip_vision_model",)),
    "llava": Host(("clip_vision_model", "siglip_vision_model"), _L14, _llava),
    "paligemma": Host(("siglip_vision_model",), _SO14, lambda *_: PALIGEMMA),
}
# Tensors to read from a host with a projector; the rest is many times as much.
OF_TOWER = re.compile(r"(.*\.)?(vision_tower|multi_modal_projector)\.")


def has_tower(config: Mapping[str, Any]) -> bool:
    """Whether a config.json belongs to a language model with a vision tower."""
    host = HOSTS.get(str(config.get("model_type")))
    return host is not None and host.tower is not None
