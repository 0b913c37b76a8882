"""Tensors, the third stage of `load`: stored arrays, and the config they show."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from imagepiece_jax.common import checksums
from imagepiece_jax.errors import InputError
from imagepiece_jax.models import registry, timm_tensors
from imagepiece_jax.models.config import ViTConfig
from imagepiece_jax.models.create import build_model
from imagepiece_jax.models.head import PROJECTION, SINGLE_LABEL
from imagepiece_jax.models.recovery_record import Recovery
from imagepiece_jax.models.variables import variable_shapes, variables_digest
from imagepiece_jax.weights import naming
from imagepiece_jax.weights.described import Described, parse_content
from imagepiece_jax.weights.file_names import (
    LEARNED_FILES,
    RECOVERED_FILE,
    SELECTORS_FILE,
)
from imagepiece_jax.weights.located import RUN_KIND, Located
from imagepiece_jax.weights.run_files import check_normalization, find_checkpoint
from imagepiece_jax.weights.tensor_files import NamedArrays, read_state_dict

VARIABLE_COLLECTIONS = ("params", "batch_stats")
AVERAGES_KEY = "ema"  # of VARIABLE_COLLECTIONS averaged over steps, in a run's state


class Tensors(NamedTuple):
    """A model's stored tensors by timm's names, and what they show."""

    config: ViTConfig  # the described config, corrected by the tensors
    class_names: tuple[str | None, ...] | None  # of the stored head
    dense: NamedArrays
    selectors: NamedArrays  # of learned reducers, maybe for several reductions
    learned: NamedArrays  # `selectors` without untrained ones
    recovery: Recovery | None  # with its values


def read_tensors(located: Located, described: Described) -> Tensors:
    """Read all tensors that the model may need.

    Raises InputError for tensors that contradict the described config.
    """
    tensors, recovered = _read_files(located, described)
    config = correct_config(located, described, tensors)
    dense, selectors = timm_tensors.split_selectors(tensors)
    untrained_starts = tuple([f"{p.replace('_', '.')}." for p in described.untrained])
    learned = {k: v for k, v in selectors.items() if not k.startswith(untrained_starts)}
    recovery = described.recovery
    if recovery is not None:
        like = variable_shapes(build_model(config))
        file = located.folder / RECOVERED_FILE
        recovery = parse_content(file, recovery.with_tensors, recovered, like)
    class_names = _choose_class_names(described, config)
    return Tensors(config, class_names, dense, selectors, learned, recovery)


def _choose_class_names(
    described: Described, config: ViTConfig
) -> tuple[str | None, ...] | None:
    """Choose the class names of the stored head; None without a head or names."""
    if not config.num_classes:
        return None
    if described.class_names is None and not described.is_stated:
        # Without a file that states classes, only a public name tells their names.
        return registry.published_class_names(config.name, config.num_classes)
    return described.class_names


def _read_files(
    located: Located, described: Described
) -> tuple[NamedArrays, NamedArrays]:
    """Read (the model's tensors, tensors of recovered variants)."""
    if located.kind == RUN_KIND:
        return _read_run(located, described.config), {}
    tensors = naming.read_timm_tensors(
        located.find_tensors(), located.checkpoint, described.config
    )
    tensors |= _read_learned_file(located, SELECTORS_FILE)
    recovered = _read_learned_file(located, RECOVERED_FILE)
    _check_same_model(located, tensors, recovered, described.digest)
    return tensors, recovered


def _read_learned_file(located: Located, name: str) -> NamedArrays:
    """Read a file beside a saved model's weights; {} if it is missing."""
    return read_state_dict(located.folder / name) if name in located.names else {}


def _check_same_model(
    located: Located, tensors: NamedArrays, recovered: NamedArrays, digest: str | None
) -> None:
    """Refuse learned files of another model; digest: of a saved model's tensors."""
    names = [name for name in LEARNED_FILES if name in located.names]
    if names and digest not in (None, variables_digest([tensors, recovered])):
        raise InputError(
            f"{located.title}: {' or '.join(names)} belongs to another model than the "
            "weights"
        )


def _read_run(located: Located, config: ViTConfig) -> NamedArrays:
    """Read a run's newest "best" or "latest" checkpoint, or its averages."""
    folder = located.folder.resolve()
    root = f"{AVERAGES_KEY}/" if located.averaged else ""

    def choose_names(_: Any, table: Mapping[str, Any]) -> list[str]:
        prefixes = tuple(f"{root}{name}/" for name in VARIABLE_COLLECTIONS)
        names = [name for name in table if name.startswith(prefixes)]
        if names or not located.averaged:
            return names
        raise InputError(
            f"run {folder} has no averaged weights, as its ema_decay was 0"
        )

    checkpoint = find_checkpoint(folder, str(located.checkpoint))
    arrays, facts, _ = checksums.read_newest_step(checkpoint, choose_names)
    check_normalization(located.folder, vars(config), facts)
    arrays = {name.removeprefix(root): array for name, array in arrays.items()}
    return timm_tensors.to_timm(traverse_util.unflatten_dict(arrays, sep="/"))


def correct_config(
    located: Located, described: Described, tensors: NamedArrays
) -> ViTConfig:
    """Correct a config by its tensors.

    Tensors decide the number of classes and whether DeiT's distillation token is a
    register. Unless the files state them, tensors also decide the positions' image size
    and a gated MLP's width.
    """
    config = described.config
    arch = config.arch
    head = tensors.get("head.weight", np.zeros(()))
    num_classes = len(head) if head.ndim else 0
    if num_classes and described.is_stated:
        config = dataclasses.replace(config, **described.head_fields)
    # A number of classes in the files must agree with the head.
    is_other_number = config.num_classes not in (0, num_classes)
    if is_other_number and described.is_stated:
        raise InputError(
            f"{located.title}: num_classes is {config.num_classes}, but its tensors "
            f"have {num_classes}"
        )
    changes: dict[str, Any] = {"num_classes": num_classes}
    is_other_head = config.name and is_other_number
    if is_other_head and config.problem_type == PROJECTION:
        changes["problem_type"] = SINGLE_LABEL
    # Without a head of its own, DeiT's distillation token is a register.
    if arch.dist_token and "reg_token" in tensors and "dist_token" not in tensors:
        changes["arch"] = dataclasses.replace(arch, dist_token=False, registers=1)
    # timm's mlp_ratio counts both halves of a gated MLP; the tensors tell the width.
    last_layer = tensors.get("blocks.0.mlp.fc2.weight", np.zeros(()))
    if not described.is_stated and arch.mlp == "swiglu" and last_layer.ndim == 2:
        changes["mlp_ratio"] = last_layer.shape[1] / config.embed_dim
    image_size = described.trained_size or config.image_size
    config = dataclasses.replace(config, **changes)
    config = config.with_preprocessing(image_size=image_size)
    positions = tensors.get("pos_embed")
    has_fixed_size = described.is_stated and described.trained_size is None
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
