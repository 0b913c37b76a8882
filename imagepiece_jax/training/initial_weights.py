"""A run's initial weights and its teacher's, checked against the config."""

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imagepiece_jax.data.class_names import check_classes
from imagepiece_jax.data.preprocessing import DEIT_CROP
from imagepiece_jax.errors import InputError, titled_errors
from imagepiece_jax.models import variables as model_variables
from imagepiece_jax.models.architecture import PART_NAMES
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.training.cluster import run_dir
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.weights.load import load

# Fields of ViTConfig and Architecture that no tensor shows. With other values than in
# training, weights silently compute something else.
UNSTORED_FIELDS = ("num_heads", "mean", "std", "norm_eps", "gelu", "rotary")
UNSTORED_FIELDS += ("post_norm", "pool", "pool_include_prefix", "pool_heads")
HEAD_FIELDS = ("pool", "pool_include_prefix")  # a new head may differ in them


class InitialWeights:
    """The weights a run starts and learns from, loaded when first needed."""

    def __init__(self, config: RunConfig, workdir: str | os.PathLike) -> None:
        self._config = config
        self._earlier_model = run_dir.read_earlier_model(workdir)

    # Lazy: a resumed run needs no initial weights.
    @functools.cached_property
    def initial_weights(self) -> Pretrained | None:
        """The weights a new run starts from; None: it has none."""
        return _load_dense_model("config.init.weights", self._config.init.weights)

    @functools.cached_property
    def teacher_weights(self) -> Pretrained | None:
        """The weights the run learns from; None: it has none."""
        return _load_dense_model("config.teacher.weights", self._config.teacher.weights)

    def free_weights(self) -> None:
        """Free the weights; a later use loads them again."""
        for name in ("initial_weights", "teacher_weights"):
            vars(self).pop(name, None)

    def complete_config(self) -> RunConfig:
        """Fill the config's empty normalization and crop from the initial weights."""
        # With the weights' normalization and crop, the first accuracy equals the
        # accuracy of `evaluate`. A resumed run keeps its own.
        config = self._config
        if self._earlier_model is not None:
            return config.fill_preprocessing(self._earlier_model)
        source_config = config.vit_config
        if self.initial_weights is not None:
            source_config = self.initial_weights.config
        needs_crop = source_config.preprocessing.crop is None
        if needs_crop and config.vit_config.preprocessing.resizes:
            source_config = source_config.with_preprocessing(crop=DEIT_CROP)
        return config.fill_preprocessing(source_config)

    def check_classes(
        self, data_names: Sequence[str | None] | None, resumes: bool = False
    ) -> None:
        """Compare the classes of teacher and kept head with the data's classes."""
        config = self._config
        weights_by_field = {"config.teacher.weights": self.teacher_weights}
        if config.init.weights and not resumes and "head" not in config.init.fresh:
            field = "config.init.weights (or config.init.fresh)"
            weights_by_field[field] = self.initial_weights
        for field, pretrained in weights_by_field.items():
            names = pretrained.class_names if pretrained else None
            check_classes(names, field, data_names, config.data.name)

    def make_initial_variables(self, model: ViT) -> Mapping[str, Any]:
        """Variables at the start of training: from `initial_weights`, else fresh."""
        config = self._config
        fresh_parts = config.init.fresh
        if self.initial_weights is None:
            if fresh_parts or config.init.weights is None:
                raise InputError("config.init.weights is empty; this config needs FILE")
            return model_variables.draw_variables(model, config.seed)
        model_variables.check_parts(fresh_parts, model, "config.init.fresh")
        try:
            return fit_variables(self.initial_weights, model, fresh_parts, config.seed)
        except model_variables.StateDictMismatch as error:
            if not error.fresh_parts:
                raise
            all_parts = tuple(dict.fromkeys((*fresh_parts, *error.fresh_parts)))
            flag = f'"--config.init.fresh={all_parts}"'
            raise InputError(f"{error}; to train it anew: {flag}") from error


def _load_dense_model(field, path):
    """Load the dense model of the weights that a config field names, if it does."""
    if not path:
        return None
    with titled_errors(field):
        return load(path, "none")  # without reduction


def fit_variables(
    pretrained: Pretrained, model: ViT, fresh_parts: tuple[str, ...] = (), seed: int = 0
) -> Mapping[str, Any]:
    """Variables of `model` with trained values; `fresh_parts` are drawn instead.

    Raises InputError for weights that do not fit the model.
    """
    variables = pretrained.variables_for(model, fresh_parts, seed)
    config = model.config
    for field in UNSTORED_FIELDS:
        if "head" in fresh_parts and field in HEAD_FIELDS:
            continue
        if field == "gelu" and not config.arch.has_gelu:  # nothing reads it
            continue
        group = "config.model"
        configs = config, pretrained.config
        if field in PART_NAMES:
            group = "config.model.arch"
            configs = config.arch, pretrained.config.arch
        value, trained_value = (getattr(options, field) for options in configs)
        is_equal = value == trained_value
        if isinstance(value, tuple | float):  # float32 rounding may have changed it
            is_equal = np.allclose(value, trained_value, rtol=1e-6, atol=0)
        if not is_equal:
            cause = f"{pretrained.origin.title} was trained with {trained_value!r}"
            raise InputError(f"{group}.{field} is {value!r}, but {cause}")
    return variables
