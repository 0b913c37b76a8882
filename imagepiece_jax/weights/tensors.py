"""Tensors, the third stage of `load`: stored arrays, and the config they show."""

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

from imagepiece_jax.errors import InputError
from imagepiece_jax.models import registry, timm_tensors
from imagepiece_jax.models.config import ViTConfig
from imagepiece_jax.models.create import build_model
from imagepiece_jax.models.head import PROJECTION, SINGLE_LABEL
from imagepiece_jax.models.recovery_record import Recovery
from imagepiece_jax.models.variables import variable_shapes, variables_digest
from imagepiece_jax.weights import naming
from imagepiece_jax.weights.description import Description, parse_content
from imagepiece_jax.weights.file_names import (
    LEARNED_FILES,
    RECOVERED_FILE,
    SELECTORS_FILE,
)
from imagepiece_jax.weights.location import RUN_KIND, Location
from imagepiece_jax.weights.run_files import find_checkpoint_folder
from imagepiece_jax.weights.tensor_files import NamedArrays, read_state_dict

VARIABLE_COLLECTIONS = ("params", "batch_stats")
AVERAGES_KEY = "ema"  # of VARIABLE_COLLECTIONS averaged over steps, in a run's state


class Tensors(NamedTuple):
    """A model's stored tensors by timm's names, and what they show."""

    config: ViTConfig  # the description's config, corrected by the tensors
    class_names: tuple[str | None, ...] | None  # of the stored head
    dense_tensors: NamedArrays
    selectors: NamedArrays  # of learned reducers, maybe for several reductions
    learned_selectors: NamedArrays  # `selectors` without untrained ones
    recovery: Recovery | None  # with its values


def read_tensors(location: Location, description: Description) -> Tensors:
    """Read all tensors that the model may need.

    Raises InputError for tensors that contradict the description's config.
    """
    tensors, variant_tensors = _read_stored_tensors(location, description)
    config = correct_config(location, description, tensors)
    dense_tensors, selectors = timm_tensors.split_selectors(tensors)
    untrained_prefixes = tuple(
        [f"{part.replace('_', '.')}." for part in description.untrained_parts]
    )
    learned_selectors = {
        k: v for k, v in selectors.items() if not k.startswith(untrained_prefixes)
    }
    recovery = description.recovery
    if recovery is not None:
        shapes = variable_shapes(build_model(config))
        recovered_file = location.disk_path / RECOVERED_FILE
        recovery = parse_content(
            recovered_file, recovery.with_tensors, variant_tensors, shapes
        )
    class_names = description.class_names if config.num_classes else None
    if config.num_classes and class_names is None and not description.has_file_config:
        # Without a file that states classes, only a public name tells their names.
        class_names = registry.published_class_names(config.name, config.num_classes)
    return Tensors(
        config, class_names, dense_tensors, selectors, learned_selectors, recovery
    )


def _read_stored_tensors(location, description):
    """Read (the model's tensors, tensors of recovered variants)."""
    if location.kind == RUN_KIND:
        return _read_run_tensors(location), {}
    tensors = naming.read_timm_tensors(
        location.find_weights(), location.checkpoint, description.config
    )
    tensors |= _read_learned_file(location, SELECTORS_FILE)
    variant_tensors = _read_learned_file(location, RECOVERED_FILE)
    learned_names = [name for name in LEARNED_FILES if name in location.file_names]
    digest = description.digest
    if learned_names and digest not in (
        None,
        variables_digest([tensors, variant_tensors]),
    ):
        names = " or ".join(learned_names)
        raise InputError(f"{location.title}: {names} belongs to other weights")
    return tensors, variant_tensors


def _read_learned_file(location, file_name):
    """Read a file beside a saved model's weights; {} if it is missing."""
    if file_name not in location.file_names:
        return {}
    return read_state_dict(location.disk_path / file_name)


def _read_run_tensors(location):
    """Read a run's newest "best" or "latest" checkpoint, or its averages."""
    from imagepiece_jax.common import checkpoints  # an optional package

    run_folder = location.disk_path.resolve()

    def choose_variables(stored_state):
        if not location.averaged:
            return {name: stored_state[name] for name in VARIABLE_COLLECTIONS}
        if not stored_state[AVERAGES_KEY]:
            raise InputError(f"run {run_folder} has no averages: its ema_decay is 0")
        return {AVERAGES_KEY: stored_state[AVERAGES_KEY]}

    state, _, _ = checkpoints.read_newest_step(
        find_checkpoint_folder(run_folder, str(location.checkpoint)), choose_variables
    )
    return timm_tensors.to_timm(state.get(AVERAGES_KEY, state))


def correct_config(
    location: Location, description: Description, tensors: NamedArrays
) -> ViTConfig:
    """Correct a config by its tensors.

    Tensors decide the number of classes and whether DeiT's distillation token is a
    register. Unless the files state them, tensors also decide the positions' image size
    and a gated MLP's width.
    """
    config = description.config
    arch = config.arch
    head_weight = tensors.get("head.weight", np.zeros(()))
    num_classes = len(head_weight) if head_weight.ndim else 0
    if num_classes and description.has_file_config:
        config = dataclasses.replace(config, **description.head_fields)
    # A number of classes in the files must agree with the head.
    has_other_classes = config.num_classes not in (0, num_classes)
    if has_other_classes and description.has_file_config:
        own = f"its tensors have {num_classes}"
        raise InputError(
            f"{location.title}: num_classes is {config.num_classes}, but {own}"
        )
    changes: dict[str, Any] = {"num_classes": num_classes}
    if config.name and has_other_classes and config.problem_type == PROJECTION:
        changes["problem_type"] = SINGLE_LABEL
    # Without a head of its own, DeiT's distillation token is a register.
    if arch.dist_token and "reg_token" in tensors and "dist_token" not in tensors:
        changes["arch"] = dataclasses.replace(arch, dist_token=False, registers=1)
    # timm's mlp_ratio counts both halves of a gated MLP; the tensors tell the width.
    fc2_weight = tensors.get("blocks.0.mlp.fc2.weight", np.zeros(()))
    has_gated_mlp = arch.mlp == "swiglu" and fc2_weight.ndim == 2
    if has_gated_mlp and not description.has_file_config:
        changes["mlp_ratio"] = fc2_weight.shape[1] / config.embed_dim
    image_size = description.trained_size or config.image_size
    config = dataclasses.replace(config, **changes)
    config = config.with_preprocessing(image_size=image_size)
    positions = tensors.get("pos_embed")
    has_fixed_size = description.has_file_config and description.trained_size is None
    if has_fixed_size or positions is None or positions.ndim != 3:
        return config
    num_positions = positions.shape[1]
    if config.arch.prefix_positions:
        num_positions -= config.arch.prefix
    # Positions of another grid than the config's are taken for a square's.
    side = math.isqrt(max(0, num_positions))
    if num_positions != math.prod(config.grid) and side * side == num_positions:
        image_size = side * config.patch_size
    return config.with_preprocessing(image_size=image_size)
