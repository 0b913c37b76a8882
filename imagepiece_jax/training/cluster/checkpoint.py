"""Checkpoints of a run: atomic, verified by checksums, and exact.

    workdir/checkpoints/latest/STEP/    the newest steps, from which a run resumes
    workdir/checkpoints/best/STEP/      the best steps, which later steps do not remove

Orbax writes a step in the background under a temporary name, renames it when it is
complete, and then removes an older step. So a kill or a full disk leaves no incomplete
step, and loses no complete one. Arrays are compared with their checksums when they are
read; a damaged step is skipped, and the one before it is taken. KEEP steps stay, which
`common.orbax_files.StepWriter` chooses. `keeper` says when a run saves and resumes.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
import re
import shutil

import jax
import numpy as np

from imagepiece_jax.common import checksums, orbax_files, parallel
from imagepiece_jax.config.run_files import CHECKPOINTS, KINDS, check_normalization
from imagepiece_jax.errors import InputError, RunError
from imagepiece_jax.models.record import differences, sentence
from imagepiece_jax.training.cluster.run_dir import RunLock, becomes_true
from imagepiece_jax.training.logging import MEASURED

KEEP = 2  # steps of each kind that stay: the second serves if the newest is damaged


@dataclasses.dataclass(frozen=True)
class Progress:
    """The facts in a checkpoint besides the state: its images and its evaluations.

    All fields are JSON values.
    """

    images: list[int]  # number of training images and of test images
    digest: list[str]  # digest of the content of both
    # Step and accuracy of the best evaluation.
    best: dict = dataclasses.field(default_factory=lambda: {"acc1": -1.0, "step": 0})
    last: dict | None = None  # figures of the last evaluation
    evaluated: int = 0  # the step of the last evaluation
    # {"mean", "std"} of the images; None: unknown.
    normalization: dict | None = None
    teacher: dict | None = None  # `Teacher.record`; None: there is none

    def with_evaluation(self, step: int, figures: dict) -> "Progress":
        """The progress after an evaluation at `step`."""
        best = self.best
        if figures["acc1"] > best["acc1"]:
            best = {"acc1": figures["acc1"], "step": step}
        # Without times, so that all runs of one config have equal checkpoints.
        last = {k: v for k, v in figures.items() if k not in MEASURED}
        return dataclasses.replace(self, best=best, last=last, evaluated=step)

    def resumed(self, saved: dict, data: str, workdir) -> "Progress":
        """The progress in a checkpoint, whose data and teacher must be of this run.

        saved: the fields in the checkpoint
        data: the name of the data
        Raises InputError where the run in `workdir` was begun with other data, another
            normalization of its images, or another teacher.
        """
        check_normalization(workdir, self.normalization, saved)
        before = Progress(**saved | {"normalization": self.normalization})
        for number, split in enumerate(("training", "test")):
            for fact in ("images", "digest"):
                now = getattr(self, fact)[number]
                then = getattr(before, fact)[number]
                if now != then:
                    raise InputError(
                        f"config.data.name is {data}, whose {split} set has {fact} "
                        f"{now}, but the run in {workdir} began with {then}; choose "
                        "another workdir"
                    )
        if found := differences(self.teacher or {}, before.teacher or {}):
            raise InputError(
                "config.teacher.weights is another teacher than the run in "
                f"{workdir} began with, whose {found[0][0]} {sentence(found, 'was')}; "
                "choose another workdir"
            )
        return before


class Checkpoints:
    """The checkpoints of one run. Reading them does not change the folder.

    A state is any tree of arrays (flax structs, optax tuples, dicts, None), which is
    not replicated. Several processes make the same calls with the same values, on a
    file system that they share. Process 0 decides which steps are there.

    keep_every: multiples of so many steps are never removed; 0: all may be removed
    lock: the RunLock of the workdir; None: it is not locked
    Raises RunError where writing fails: in `save`, or, as writing continues in the
        background, in the next `save`, `wait` or `close`.
    """

    def __init__(self, workdir, keep_every=0, lock=None):
        self._root = pathlib.Path(workdir).resolve() / CHECKPOINTS
        self._keep_every = keep_every
        self._lock = lock or RunLock(workdir)
        self._writers = {}  # {kind: StepWriter}, each made by the first save
        self._open = contextlib.ExitStack()  # the writers and their contexts

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        try:
            self.close()
        except RunError:
            if not isinstance(error, RunError):  # else that is why the run has ended
                raise

    def save(self, step, state, meta, kind="latest"):
        """Start saving a state; return when it may be changed again.

        Steps from `step` on are removed, because they are damaged, or were abandoned
        when the run resumed from an earlier step. A complete and equal step that is
        there already stays. The first save also removes unfinished files of killed
        runs; it does so only now because before, another process may be reading.

        meta: a dict of JSON values
        kind: "latest", or "best"
        """
        leaves = _leaves_by_name(state)
        arrays = {name: np.asarray(leaf) for name, leaf in leaves.items()}
        content = checksums.content_of(arrays, meta)
        self._lock.check()
        with self._reported(kind):
            writer = self._writer(kind)
            writer.wait()
            if parallel.from_main(lambda: self._holds(kind, step, content)):
                return
            for later in [s for s in writer.steps() if s >= step]:
                writer.remove(later)
            writer.save(step, arrays, checksums.sealed(content))

    def check_room(self, state, steps):
        """Raise InputError where the disk cannot hold a run's checkpoints.

        These are KEEP steps of each kind and one that is being written, and the steps
        that are never removed.

        state: a tree with the shapes and dtypes of the state
        steps: number of steps of the whole run
        """
        size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
        count = len(KINDS) * (KEEP + 1)
        if self._keep_every:
            count += steps // self._keep_every
        there = next(p for p in (self._root, *self._root.parents) if p.exists())
        free = shutil.disk_usage(there).free
        present = sum(p.stat().st_size for p in self._root.rglob("*") if p.is_file())
        if free + present < count * size:
            raise InputError(
                f"{self._root} has {free / 1e9:.3f} GB of free disk, but {count} "
                f"checkpoints of {size / 1e6:,.0f} MB need "
                f"{(count * size - present) / 1e9:.3f} GB"
            )

    def latest_step(self):
        """The newest complete step, even if it is damaged; None without any."""
        self.wait()
        return max(self._steps("latest"), default=None)

    def restore(self, abstract_state):
        """(state, meta, step) of the newest undamaged step.

        abstract_state: a tree as the state, whose leaves have `shape` and `dtype`
        Raises InputError for a step that does not fit it, and where there is none.
        """
        self.wait()
        wanted = _leaves_by_name(abstract_state)
        arrays, meta, step = checksums.read_newest(
            self._root / "latest",
            choose=functools.partial(_checked_table, wanted),
            among=parallel.from_main(lambda: self._steps("latest")),
            reader=_read_together,
        )
        leaves = [arrays[name] for name in wanted]
        state = jax.tree.unflatten(jax.tree.structure(abstract_state), leaves)
        return state, meta, step

    def wait(self):
        """Return when everything is on disk."""
        for kind, writer in self._writers.items():
            with self._reported(kind):
                writer.wait()

    def close(self):
        """Wait, then stop the threads that write. Closing twice is allowed."""
        self._writers.clear()
        self._open.close()  # each writer, whatever fails in the others

    @contextlib.contextmanager
    def _reported(self, kind):
        """Context in which errors of Orbax and TensorStore become a RunError."""
        try:
            yield
        except (MemoryError, InputError, RunError):
            raise
        except Exception as error:
            self._lock.check()  # raises where the workdir has vanished, the real cause
            complete = []
            with contextlib.suppress(OSError):  # the folder may be out of reach
                complete = self._steps(kind)
            raise RunError(
                f"{self._root / kind}: a checkpoint could not be written ("
                f"{_reason(error)}); complete ones there: {complete or 'none'}; fix "
                "this, and the same command resumes from the newest"
            ) from error

    def _holds(self, kind, step, content):
        """Whether a step with exactly this content is on disk, undamaged."""
        if step not in self._steps(kind):
            return False
        try:
            folder = self._root / kind / str(step)
            if checksums.read_content(folder) != content:
                return False  # no array has to be read
            checksums.read(folder, lambda _, table: table)
            return True
        except checksums.DamagedError:
            return False

    def _steps(self, kind):
        return checksums.steps(self._root / kind)

    def _writer(self, kind):
        """The StepWriter of a kind of checkpoints.

        It is made by the first save, because it removes unfinished steps.
        """
        if not self._writers:
            self._open.enter_context(orbax_files.patient_event_loops())
            orbax_files.log_no_raised_errors()
        if kind not in self._writers:
            every = self._keep_every if kind == "latest" else 0
            writer = orbax_files.StepWriter(self._root / kind, KEEP, every)
            self._open.enter_context(self._reported(kind))
            self._open.callback(writer.close)
            self._writers[kind] = writer
            self._wait_for_same_steps(kind, writer)
        return self._writers[kind]

    def _wait_for_same_steps(self, kind, writer):
        """Wait until this process's `writer` sees the steps that process 0 sees.

        A writer looks at its folder when it is made and then only when told to, and on
        shared storage one host may see a folder later than another
        (test_two_processes_save_together_and_one_reads). With Orbax's own option,
        single_host_load_and_broadcast, a process that does not see the folder would
        return, and process 0 would wait for it.

        Raises RunError where the steps still differ after a while.
        """
        steps = parallel.from_main(writer.steps)

        def seen():
            if writer.steps() != steps:
                writer.look_again()
            return writer.steps() == steps

        if not becomes_true(seen):
            raise RunError(
                f"{self._root / kind} holds steps {steps} on process 0, but "
                f"{writer.steps()} here: all hosts need to share it"
            )


def _read_together(folder, choose):
    """`checksums.read` in every process; damage that one finds is raised in all."""
    if not parallel.is_main():
        becomes_true(folder.exists)
    arrays = {}
    content = None
    damage = None
    try:
        arrays, content = checksums.read(folder, choose)
    except checksums.DamagedError as error:
        damage = str(error)
    contents, damages = zip(*parallel.exchange([content, damage]), strict=True)
    for damage in damages:
        if damage:
            raise checksums.DamagedError(damage)
    return arrays, contents[0]


def _checked_table(wanted, folder, table):
    """The table of a checkpoint's arrays, which must be that of the `wanted` ones.

    Raises InputError for the first array that differs.
    """
    for name in wanted | table:
        found = "missing"
        if name in table:
            dtype, shape, *_ = table[name]
            found = f"{dtype} {shape}"
        needed = "missing"
        if name in wanted:
            needed = f"{wanted[name].dtype} {[*wanted[name].shape]}"
        if found != needed:
            raise InputError(
                f"{folder}: {name} is {found}, but {needed} in the model of this config"
            )
    return table


def _leaves_by_name(tree):
    """Leaves by path: {"params/head/bias": array, "opt_state/0/mu/...": ...}."""
    keystr = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {keystr(path): leaf for path, leaf in leaves}


def _reason(error):
    """Why writing failed, in a few words: the operating system's, if it has any."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if code:
        return os.strerror(int(code[1]))
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
