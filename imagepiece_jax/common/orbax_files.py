"""The package's only calls of Orbax: writing and reading checkpoints.

A step is a folder with two items: `state`, nested dicts of arrays, and `meta`, JSON.
"""

import asyncio
import contextlib
import json
import pathlib
from collections.abc import Collection, Iterator
from logging import LogRecord
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from imagepiece_jax.common import extras, files

# Orbax 1.0.0 makes its API v1 the top level: this file must then be rewritten. v1 reads
# these folders, too.
with extras.explained_imports("a checkpoint"):
    import orbax.checkpoint as ocp
    from absl import logging
    from orbax.checkpoint import checkpoint_managers as policies


class StepWriter:
    """Writer of a folder's steps, in the background, by this process alone.

    The constructor creates the folder, and removes unfinished steps of killed runs.

    num_newest: number of newest steps to keep
    keep_every: also keep the multiples of this number; 0: none
    """

    def __init__(
        self, folder: pathlib.Path, num_newest: int, keep_every: int = 0
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        keep_rules: list[policies.PreservationPolicy] = [policies.LatestN(num_newest)]
        if keep_every:
            keep_rules.append(policies.EveryNSteps(keep_every))
        manager_options = ocp.CheckpointManagerOptions(
            create=False,
            preservation_policy=policies.AnyPreservationPolicy(keep_rules),
            cleanup_tmp_directories=True,
            multiprocessing_options=_single_process_options(jax.process_index()),
        )
        logging.get_absl_logger().addFilter(_is_not_raised)
        self._contexts = contextlib.ExitStack()
        self._contexts.enter_context(_patient_event_loops())
        self._manager = ocp.CheckpointManager(folder, options=manager_options)

    def steps(self) -> list[int]:
        """List the complete steps, in order."""
        return sorted(self._manager.all_steps())

    def remove(self, step: int) -> None:
        self._manager.delete(step)

    def save(self, step: int, arrays: dict[str, np.ndarray], metadata: dict) -> None:
        """Start writing a step. After the return, `arrays` may be changed again.

        arrays: {name: array}; "/" separates the keys of nested dicts
        """
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(traverse_util.unflatten_dict(arrays, sep="/")),
            meta=ocp.args.JsonSave(metadata),
        )
        self._manager.save(step, args=items, force=True)

    def wait(self) -> None:
        """Return when everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait, then stop the writing threads."""
        with self._contexts:
            self._manager.close()


def read_arrays(folder: pathlib.Path, key_paths: Collection[tuple[str, ...]]) -> dict:
    """Read a tree's arrays at `key_paths`, tuples of keys, as NumPy: {path: array}."""
    if not key_paths:  # Orbax refuses an empty tree
        return {}
    placeholders = traverse_util.unflatten_dict(dict.fromkeys(key_paths, 0))
    leaf_args = ocp.RestoreArgs(restore_type=np.ndarray)
    restore_args = jax.tree.map(lambda _: leaf_args, placeholders)
    request = ocp.args.PyTreeRestore(
        placeholders, restore_args=restore_args, partial_restore=True
    )
    nested_arrays = _read_item(folder, ocp.PyTreeCheckpointHandler(), request)
    return traverse_util.flatten_dict(nested_arrays)


def read_json_item(folder: pathlib.Path) -> Any:
    """Read an item's JSON value."""
    return _read_item(folder, ocp.JsonCheckpointHandler(), ocp.args.JsonRestore())


def replace_json_item(folder: pathlib.Path, value: Any) -> None:
    """Replace an item's JSON value on disk, at once."""
    files.replace_file(folder / "metadata", json.dumps(value))  # as Orbax writes it


def _read_item(
    folder: pathlib.Path,
    handler: ocp.CheckpointHandler,
    request: ocp.args.CheckpointArgs,
) -> Any:
    """Read a step's item by its handler, without waiting for other processes."""
    options = _single_process_options(primary_host=None)
    checkpointer = ocp.Checkpointer(handler, multiprocessing_options=options)
    with checkpointer, _patient_event_loops():
        return checkpointer.restore(folder, request)


class _PatientEventLoop(asyncio.SelectorEventLoop):
    """Event loop that closes after its tasks are done, even if a task failed."""

    def close(self) -> None:
        tasks = asyncio.all_tasks(self)
        if tasks and not self.is_closed():
            self.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        super().close()


@contextlib.contextmanager
def _patient_event_loops() -> Iterator[None]:
    """Let new event loops close only after their tasks have ended."""
    # Orbax gives up at the first array that fails. Every later array would print "Event
    # loop is closed" and a traceback when it arrives, 13 of them for a file cut in half
    # (test_a_damaged_step_is_skipped_and_replaced).
    previous_factory = asyncio.new_event_loop
    asyncio.new_event_loop = _PatientEventLoop  # policies leave with Python 3.16
    try:
        yield
    finally:
        asyncio.new_event_loop = previous_factory


def _single_process_options(
    primary_host: int | None,
) -> ocp.options.MultiprocessingOptions:
    """Orbax options for a process that does not wait for other processes."""
    return ocp.options.MultiprocessingOptions(
        primary_host=primary_host, active_processes={jax.process_index()}
    )


def _is_not_raised(record: LogRecord) -> bool:
    """Log filter: drop errors if Orbax raises them, too."""
    # A full disk must be one sentence (tests/training/test_trainer_full_disk.py).
    return not (record.exc_info and "/orbax/" in record.pathname)
