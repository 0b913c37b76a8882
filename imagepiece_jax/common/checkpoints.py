"""Checkpoints by Orbax: a step has `state`, a tree of arrays, and `meta`, JSON."""

import logging
import pathlib
import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from imagepiece_jax.common import extras
from imagepiece_jax.common.files import AnyPath
from imagepiece_jax.errors import InputError

with extras.explained_imports("a checkpoint"):
    import orbax.checkpoint as ocp
    from orbax.checkpoint import checkpoint_managers as policies

log = logging.getLogger("imagepiece_jax.checkpoints")
# Orbax 0.12.8 restores flipped bits silently (40 of 40), so a CRC32 of each part of the
# state stands under this name in the metadata.
CHECKSUMS = "crc32"


def open_steps(
    folder: AnyPath, num_newest: int | None = None, keep_every: int = 0
) -> ocp.CheckpointManager:
    """Open a folder of steps, for this process alone. Opening to write cleans it up.

    num_newest: number of newest steps to keep; None: open to read
    keep_every: also keep the multiples of this number; 0: none
    """
    if num_newest is not None:
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    policies_to_keep: list[policies.PreservationPolicy] = [policies.LatestN(num_newest)]
    if keep_every:
        policies_to_keep.append(policies.EveryNSteps(keep_every))
    this_process = jax.process_index()
    options = ocp.CheckpointManagerOptions(
        create=False,
        cleanup_tmp_directories=num_newest is not None,
        preservation_policy=policies.AnyPreservationPolicy(policies_to_keep),
        # Processes do not wait for each other: one writes, and all read.
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            primary_host=this_process, active_processes={this_process}
        ),
    )
    handlers = {
        "state": ocp.PyTreeCheckpointHandler(),
        "meta": ocp.JsonCheckpointHandler(),
    }
    return ocp.CheckpointManager(folder, options=options, item_handlers=handlers)


def start_saving(
    manager: ocp.CheckpointManager, step: int, state: Any, metadata: dict
) -> None:
    """Start saving a step; at the return `state` may be changed.

    state: a flax struct, or a dict, of trees of NumPy arrays
    """
    checksums = {name: _checksum(part) for name, part in _parts(state).items()}
    items = ocp.args.Composite(
        state=ocp.args.PyTreeSave(state),
        meta=ocp.args.JsonSave(metadata | {CHECKSUMS: checksums}),
    )
    # Orbax by itself saves no step below its newest, which may be a damaged one.
    manager.save(step, args=items, force=True)


def read_newest_step(folder: AnyPath, choose: Callable[[dict], Any]) -> tuple:
    """Read the newest intact step in `folder`: (state, metadata, step).

    A damaged step is skipped with a warning.

    choose: function from the stored state, nested dicts, to the state or parts to read
    """
    with open_steps(folder) as manager:
        for step in sorted(manager.all_steps(), reverse=True):
            try:
                return *_read_step(manager, step, choose), step
            except (InputError, MemoryError):
                raise
            except Exception as error:  # of Orbax or TensorStore, of many types
                reason = (str(error) or type(error).__name__).splitlines()[0][:200]
                log.warning(
                    "skipping the damaged checkpoint %s/%s (%s)", folder, step, reason
                )
    raise InputError(f"{folder} holds no intact checkpoint")


def _read_step(manager, step, choose):
    """(state, metadata) of a step; ValueError for a wrong checksum."""
    target = choose(manager.item_metadata(step)["state"].tree)
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), target)
    # A dict may hold some of the stored parts; a struct must hold all.
    is_dict = isinstance(target, dict)
    items = ocp.args.Composite(
        state=ocp.args.PyTreeRestore(target, as_numpy, partial_restore=is_dict),
        meta=ocp.args.JsonRestore(),
    )
    restored = manager.restore(step, args=items)
    metadata = dict(restored.meta)
    checksums = metadata.pop(CHECKSUMS)  # not the caller's, see `start_saving`
    for name, part in _parts(restored.state).items():
        if _checksum(part) != checksums[name]:
            raise ValueError(f"{name} does not fit its checksum")
    return restored.state, metadata


def _parts(state):
    """{name: tree} of a flax struct, or of a dict."""
    return state if isinstance(state, dict) else vars(state)


def _checksum(tree):
    """CRC32 of a tree's arrays, one after the other."""
    checksum = 0
    for leaf in jax.tree.leaves(tree):
        checksum = zlib.crc32(np.ascontiguousarray(leaf).view(np.uint8).data, checksum)
    return checksum
