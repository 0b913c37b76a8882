"""The part of Orbax that this package uses: writing and reading checkpoints.

Its v1 becomes the top level with version 1.0.0: moving there means rewriting this file.
A step is a folder of two items, which v1 reads too: `state`, nested dicts of arrays,
and `meta`, a JSON value.
"""

import asyncio
import contextlib
import json

import jax
import numpy as np
from flax import traverse_util

from imagepiece_jax.common import extras, files

with extras.needed("a checkpoint"):
    import orbax.checkpoint as ocp
    from absl import logging
    from orbax.checkpoint import checkpoint_managers as policies


class StepWriter:
    """The steps in a folder, written in the background by this process alone.

    Making one makes the folder, and removes what killed runs left unfinished.

    keep: so many of the newest steps are not removed
    keep_every: neither are multiples of so many steps; 0: none
    """

    def __init__(self, folder, keep, keep_every=0):
        folder.mkdir(parents=True, exist_ok=True)
        preserved = [policies.LatestN(keep)]
        if keep_every:
            preserved.append(policies.EveryNSteps(keep_every))
        options = ocp.CheckpointManagerOptions(
            create=False,
            preservation_policy=policies.AnyPreservationPolicy(preserved),
            cleanup_tmp_directories=True,
            multiprocessing_options=_alone(primary_host=jax.process_index()),
        )
        logging.get_absl_logger().addFilter(_not_raised_too)
        self._loops = contextlib.ExitStack()
        self._loops.enter_context(_patient_event_loops())
        self._manager = ocp.CheckpointManager(folder, options=options)

    def steps(self):
        """Numbers of the complete steps, in order."""
        return sorted(self._manager.all_steps())

    def remove(self, step):
        """Remove a step."""
        self._manager.delete(step)

    def save(self, step, arrays, meta):
        """Start writing; returns when `arrays` may be changed again.

        arrays: by name; "/" separates the keys of nested dicts
        """
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(traverse_util.unflatten_dict(arrays, sep="/")),
            meta=ocp.args.JsonSave(meta),
        )
        self._manager.save(step, args=items, force=True)

    def wait(self):
        """Return when everything is on disk."""
        self._manager.wait_until_finished()

    def close(self):
        """Wait, then stop the threads that write."""
        with self._loops:
            self._manager.close()


def read_arrays(folder, paths):
    """Read the arrays at some paths, tuples of keys, of a tree as NumPy."""
    if not paths:  # Orbax refuses an empty tree
        return {}
    tree = traverse_util.unflatten_dict(dict.fromkeys(paths, 0))
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    restore = ocp.args.PyTreeRestore(tree, restore_args=as_numpy, partial_restore=True)
    arrays = _read(folder, ocp.PyTreeCheckpointHandler(), restore)
    return traverse_util.flatten_dict(arrays)


def read_json(folder):
    """The JSON value of an item."""
    return _read(folder, ocp.JsonCheckpointHandler(), ocp.args.JsonRestore())


def replace_json(folder, value):
    """Replace the JSON value of an item on disk, at once."""
    files.replace_file(folder / "metadata", json.dumps(value))  # as Orbax writes it


def _read(folder, handler, restore):
    """One item, as Orbax returns it."""
    options = _alone(primary_host=None)
    checkpointer = ocp.Checkpointer(handler, multiprocessing_options=options)
    with checkpointer, _patient_event_loops():
        return checkpointer.restore(folder, restore)


class _PatientEventLoop(asyncio.SelectorEventLoop):
    """Event loop that closes when its tasks are done, even if one of them failed."""

    def close(self):
        tasks = asyncio.all_tasks(self)
        if tasks and not self.is_closed():
            self.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        super().close()


@contextlib.contextmanager
def _patient_event_loops():
    """Context in which event loops close only once their tasks have ended.

    Orbax gives up at the first array that fails; each of the others would print "Event
    loop is closed" and a traceback when it arrives, 13 of them for a file cut in half
    (test_a_run_that_fell_back_replaces_the_damaged_step).
    """
    before = asyncio.new_event_loop
    asyncio.new_event_loop = _PatientEventLoop  # policies leave with Python 3.16
    try:
        yield
    finally:
        asyncio.new_event_loop = before


def _alone(primary_host):
    """Options with which a process waits for no other."""
    return ocp.options.MultiprocessingOptions(
        primary_host=primary_host, active_processes={jax.process_index()}
    )


def _not_raised_too(record):
    """Whether a record is more than an error that Orbax raises, too.

    A full disk is one sentence (tests/training/test_trainer_full_disk.py).
    """
    return not (record.exc_info and "/orbax/" in record.pathname)
