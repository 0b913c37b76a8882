"""Where does a run go on after a crash? Checkpoints that are whole, checked and exact.

    workdir/checkpoints/latest/STEP/    the newest ones: what a run goes on from
    workdir/checkpoints/best/STEP/      apart from them, so that training on keeps it

Orbax writes a step beside its place and renames it when it is complete, so a kill
leaves no half step. It does not notice flipped bits: a CRC32 of every array is
therefore stored with the step and compared when it is read. A damaged step is skipped
for the one before.
"""

import asyncio
import contextlib
import json
import pathlib
import zlib

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from flax import traverse_util
from orbax.checkpoint import checkpoint_managers as policies

from imagepiece_jax.errors import InputError

KINDS = ("latest", "best")
KEEP = 2  # of each kind: one more than needed, in case the newest is damaged


class DamagedError(Exception):
    """A step that cannot be read, or that reads differently from what was written."""


class Checkpoints:
    """The checkpoints of one run. Reading leaves the folder as it is.

    A state is any tree of arrays (flax structs, optax tuples, dicts, None); it is given
    and returned unreplicated, as NumPy arrays. `meta` is a dict of JSON values. With
    several processes, every process makes the same calls with the same values, on a
    file system that all of them see.

    `keep_every`: steps that are multiples of it are never removed (None or 0: only the
    newest two are kept).
    """

    def __init__(self, workdir, keep_every=None):
        self._root = pathlib.Path(workdir).resolve() / "checkpoints"
        self._keep_every = keep_every
        self._managers = {}

    def save(self, step, state, meta):
        """Start saving `state` as the latest; returns when it may be changed again.

        Steps from `step` on are removed: they are damaged, or of a course that was
        given up by going on from an earlier step. A step that is already there, whole
        and equal, is left alone. The first save also removes what killed runs left
        unfinished (not earlier: another process may be reading along).
        """
        self._save("latest", step, state, meta)

    def save_best(self, step, state, meta):
        """As `save`, for a state that the caller found to be the best so far."""
        self._save("best", step, state, meta)

    def latest_step(self):
        """The newest step that was completely written (damaged or not), or None."""
        self.wait()
        return max(self._steps("latest"), default=None)

    def restore(self, abstract_state, step=None):
        """The newest whole step, or exactly `step`: (state, meta, step).

        `abstract_state` has the structure of the state and leaves with `shape` and
        `dtype`; a step that does not fit it, or none to be found, is an InputError.
        """
        return self._restore("latest", abstract_state, step)

    def restore_best(self, abstract_state):
        """As `restore`, for the newest whole best."""
        return self._restore("best", abstract_state)

    def restore_variables(self, which="best"):
        """Everything but the optimiser's state, without knowing what it should be.

        A dict by the state's field names ("params", "batch_stats", "step", ...) of
        nested dicts of NumPy arrays; `which` is "best" or "latest".
        """
        if which not in KINDS:
            raise InputError(f"checkpoint {which!r}: allowed are {' and '.join(KINDS)}")

        def choose(folder, table):
            return [name for name in table if name.split("/")[0] != "opt_state"]

        arrays, _, _ = self._read_newest(which, choose)
        return traverse_util.unflatten_dict(arrays, sep="/")

    def wait(self):
        """Return when everything is on disk."""
        for manager in self._managers.values():
            manager.wait_until_finished()

    def close(self):
        """Wait, then stop the threads that write."""
        for manager in self._managers.values():
            manager.close()
        self._managers = {}

    def _save(self, kind, step, state, meta):
        arrays = {name: np.asarray(leaf) for name, leaf in _named(state).items()}
        table = {name: _entry(array) for name, array in arrays.items()}
        content = json.dumps({"meta": meta, "arrays": table}, sort_keys=True)
        manager = self._manager(kind)
        manager.wait_until_finished()
        if self._holds(kind, step, content):
            return
        for later in [s for s in manager.all_steps() if s >= step]:
            manager.delete(later)
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(traverse_util.unflatten_dict(arrays, sep="/")),
            meta=ocp.args.JsonSave(
                {"content": content, "crc32": zlib.crc32(content.encode())}
            ),
        )
        manager.save(step, args=items, force=True)

    def _holds(self, kind, step, content):
        """Is exactly this already on disk, and whole?"""
        if step not in self._steps(kind):
            return False
        try:
            return _read(self._folder(kind, step), lambda _, table: table)[1] == content
        except DamagedError:
            return False

    def _restore(self, kind, abstract_state, step=None):
        wanted = _named(abstract_state)

        def choose(folder, table):
            _check_fit(folder, wanted, table)
            return table

        arrays, meta, step = self._read_newest(kind, choose, step)
        leaves = [arrays[name] for name in wanted]
        state = jax.tree.unflatten(jax.tree.structure(abstract_state), leaves)
        return state, meta, step

    def _read_newest(self, kind, choose, step=None):
        """Arrays by name, meta, step: of the newest whole step, or of `step` alone."""
        self.wait()
        steps = self._steps(kind) if step is None else {step} & self._steps(kind)
        if not steps:
            what = "checkpoint" if step is None else f"checkpoint of step {step}"
            raise InputError(f"{self._root / kind} holds no {what}")
        for candidate in sorted(steps, reverse=True):
            folder = self._folder(kind, candidate)
            try:
                arrays, content = _read(folder, choose)
                return arrays, json.loads(content)["meta"], candidate
            except DamagedError as error:
                logging.warning("skipping the damaged checkpoint %s: %s", folder, error)
        raise InputError(
            f"{self._root / kind}: every checkpoint tried is damaged (steps "
            f"{sorted(steps)}); remove the folder to start again, or choose another "
            "--workdir"
        )

    def _folder(self, kind, step):
        return self._root / kind / str(step)

    def _steps(self, kind):
        folder = self._root / kind
        if not folder.is_dir():
            return set()
        return {int(path.name) for path in folder.iterdir() if path.name.isdecimal()}

    def _manager(self, kind):
        # Made by the first save: making one writes, and removes unfinished steps.
        if kind not in self._managers:
            keep = [policies.LatestN(KEEP)]
            if self._keep_every and kind == "latest":
                keep.append(policies.EveryNSteps(self._keep_every))
            options = ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(keep),
                cleanup_tmp_directories=True,
            )
            self._managers[kind] = ocp.CheckpointManager(
                self._root / kind, options=options, item_handlers=_handlers()
            )
        return self._managers[kind]


def _read(folder, choose):
    """Arrays by name, and the content text, of a step; DamagedError if not whole.

    `choose(folder, table)` names the arrays to read, and may raise an InputError.
    """
    meta = _read_item(folder, meta=ocp.args.JsonRestore())
    content = meta.get("content", "")
    if zlib.crc32(str(content).encode()) != meta.get("crc32"):
        raise DamagedError("its meta data are not what was written (checksum)")
    table = json.loads(content)["arrays"]
    names = list(choose(folder, table))
    tree = traverse_util.unflatten_dict(dict.fromkeys(names, 0), sep="/")
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    restore = ocp.args.PyTreeRestore(tree, restore_args=as_numpy, partial_restore=True)
    arrays = traverse_util.flatten_dict(_read_item(folder, state=restore), sep="/")
    for name in names:
        if _entry(arrays[name]) != table[name]:
            raise DamagedError(f"{name} is not what was written (checksum)")
    return arrays, content


def _read_item(folder, **restore):
    """One item of a step, as Orbax gives it."""
    handler = ocp.CompositeCheckpointHandler(**_handlers())
    with ocp.Checkpointer(handler) as checkpointer, _patient_event_loops():
        try:
            items = checkpointer.restore(folder, ocp.args.Composite(**restore))
        except MemoryError:
            raise
        except Exception as error:  # Orbax and TensorStore raise many types
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            raise DamagedError(reason) from error
    (item,) = items.values()
    return item


class _PatientEventLoop(asyncio.SelectorEventLoop):
    """Closes when its tasks are done, even if one of them has failed."""

    def close(self):
        tasks = asyncio.all_tasks(self)
        if tasks and not self.is_closed():
            self.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        super().close()


class _PatientPolicy(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self):
        return _PatientEventLoop()


@contextlib.contextmanager
def _patient_event_loops():
    """Else Orbax gives up at the first damaged array while others are being read.

    Each of those would print "Event loop is closed" and a traceback when it arrives.
    """
    before = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(_PatientPolicy())
    try:
        yield
    finally:
        asyncio.set_event_loop_policy(before)


def _check_fit(folder, wanted, table):
    """InputError for the first array that a step and the wanted state disagree on."""
    for name in [*wanted, *(name for name in table if name not in wanted)]:
        if name not in table:
            raise InputError(f"{folder} has no {name}, which this config asks for")
        if name not in wanted:
            raise InputError(f"{folder} has {name}, but this config has no such array")
        dtype, shape = table[name][:2]
        leaf = wanted[name]
        if (dtype, shape) != (str(leaf.dtype), list(leaf.shape)):
            raise InputError(
                f"{folder}: {name} is {dtype} {shape} in the checkpoint, but this "
                f"config asks for {leaf.dtype} {list(leaf.shape)}"
            )


def _named(tree):
    """Leaves by path: {"params/head/bias": array, "opt_state/0/mu/...": ...}."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in leaves
    }


def _entry(array):
    """What the table says of an array: [dtype, shape, CRC32 of its bytes]."""
    data = np.ascontiguousarray(array).view(np.uint8).data
    return [str(array.dtype), list(array.shape), zlib.crc32(data)]


def _handlers():
    return {"state": ocp.PyTreeCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
