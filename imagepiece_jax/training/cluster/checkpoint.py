"""Run checkpoints: atomic, verified by checksums, and exact.

    workdir/checkpoints/latest/STEP/    the newest steps, from which a run resumes
    workdir/checkpoints/best/STEP/      the best steps; later steps do not remove them

Process 0 writes, all processes read. If a step is damaged, the step before it is read.
`keeper` decides when a run saves and resumes.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any, Self

import jax
import numpy as np
from jaxtyping import PyTree

from imagepiece_jax.common import checksums, orbax_files, parallel
from imagepiece_jax.errors import InputError, RunError
from imagepiece_jax.models.record import describe_difference, list_differences
from imagepiece_jax.training.logging import CLOCKED_METRICS
from imagepiece_jax.weights.run_files import CHECKPOINTS_FOLDER, check_normalization

# Newest steps per kind that stay: the second serves if the newest is damaged.
NUM_KEPT = 2


@dataclasses.dataclass(frozen=True)
class RunProgress:
    """Metadata of a checkpoint, as JSON values: images, evaluations, teacher."""

    images: list[int]  # number of training images, number of validation images
    digest: list[str]  # content digests of both
    # step and accuracy of the best evaluation
    best: dict = dataclasses.field(default_factory=lambda: {"acc1": -1.0, "step": 0})
    last: dict | None = None  # metrics of the last evaluation
    evaluated: int = 0  # the step of the last evaluation
    # {"mean", "std"} of the images; None: unknown
    normalization: dict | None = None
    teacher: dict | None = None  # `Teacher.make_record`; None: no teacher

    def with_evaluation(
        self, step: int, metrics: dict, may_choose: bool = True
    ) -> "RunProgress":
        """Add an evaluation at `step`; `may_choose`: images may choose a checkpoint."""
        best_evaluation = self.best
        # If the images may not choose, the last step is the best.
        if metrics["acc1"] > best_evaluation["acc1"] or not may_choose:
            best_evaluation = {"acc1": metrics["acc1"], "step": step}
        # Times stay out, so that all runs of one config have equal checkpoints.
        last_metrics = {k: v for k, v in metrics.items() if k not in CLOCKED_METRICS}
        return dataclasses.replace(
            self, best=best_evaluation, last=last_metrics, evaluated=step
        )

    def resume_saved(
        self, saved_fields: dict, data_name: str, workdir: str | os.PathLike
    ) -> "RunProgress":
        """Return a checkpoint's progress; refuse other data, or another teacher."""
        normalization = self.normalization or {}
        check_normalization(pathlib.Path(workdir), normalization, saved_fields)
        # The checkpoint may not know its normalization.
        progress_fields = saved_fields | {"normalization": self.normalization}
        saved_progress = RunProgress(**progress_fields)
        for split, index in (("training", 0), ("validation", 1)):
            value_pairs: dict[str, tuple] = {}
            value_pairs["images"] = (self.images[index], saved_progress.images[index])
            value_pairs["digest"] = (self.digest[index], saved_progress.digest[index])
            for field, (new_value, old_value) in value_pairs.items():
                if new_value != old_value:
                    raise InputError(
                        f"config.data.name is {data_name}, whose {split} set has "
                        f"{field} {new_value}, but the run in {workdir} began with "
                        f"{old_value}; choose another workdir"
                    )
        saved_teacher = saved_progress.teacher or {}
        if changes := list_differences(self.teacher or {}, saved_teacher):
            raise InputError(
                "config.teacher.weights is another teacher than the run in "
                f"{workdir} began with, whose {changes[0][0]} "
                f"{describe_difference(changes, 'was')}; choose another workdir"
            )
        return saved_progress


class Checkpoints:
    """Checkpoints of one run. Reading does not change the folder.

    A state is any tree of unreplicated arrays (flax structs, optax tuples, dicts,
    None). All processes make the same calls, on a shared file system.

    keep_every: multiples of this step count are never removed; 0: no extra steps stay
    Raises RunError if writing fails: in `save`, or, as writing continues in the
        background, in the next `save`, `wait` or `close`.
    """

    def __init__(self, workdir: str | os.PathLike, keep_every: int = 0) -> None:
        self._root = pathlib.Path(workdir).resolve() / CHECKPOINTS_FOLDER
        self._keep_every = keep_every
        # By kind, each made by the first save.
        self._writers: dict[str, orbax_files.StepWriter] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            self.close()
        except RunError:
            if not isinstance(error, RunError):  # else `error` says why the run ended
                raise

    def save(
        self, step: int, state: PyTree, metadata: dict, kind: str = "latest"
    ) -> None:
        """Start saving a state and JSON metadata; return when both may change again."""
        if not parallel.is_main():
            return
        arrays = _name_arrays(state)
        with self._translate_write_errors(kind):
            if kind not in self._writers:
                # Making a writer removes unfinished files of killed runs.
                keep_every = self._keep_every if kind == "latest" else 0
                writer = orbax_files.StepWriter(self._root / kind, NUM_KEPT, keep_every)
                self._writers[kind] = writer
            writer = self._writers[kind]
            writer.wait()
            # Later steps are damaged, or abandoned by a resume from an earlier step.
            for later_step in [s for s in writer.steps() if s >= step]:
                writer.remove(later_step)
            # Orbax writes under a temporary name, renames the complete step, and then
            # removes an older step. A kill or a full disk leaves no incomplete step,
            # and loses no complete step.
            writer.save(step, arrays, checksums.seal_metadata(arrays, metadata))

    def replace_metadata(self, step: int, state: PyTree, metadata: dict) -> None:
        """Replace a "latest" step's metadata; its state on disk is already the same."""
        # A kill leaves the old or the new metadata. `save` would remove the step first.
        if parallel.is_main():
            item = checksums.seal_metadata(_name_arrays(state), metadata)
            folder = self._root / "latest" / str(step) / "meta"
            orbax_files.replace_json_item(folder, item)

    def find_latest_step(self) -> int | None:
        """The newest complete step, even if damaged; None without steps."""
        self.wait()
        return max(checksums.complete_steps(self._root / "latest"), default=None)

    def restore(self, abstract_state: PyTree) -> tuple[PyTree, dict, int]:
        """Read the newest undamaged step: (state, metadata, step).

        abstract_state: a tree like the state, whose leaves have `shape` and `dtype`
        Raises InputError if the step does not fit, or there is no step.
        """
        self.wait()
        abstract_leaves = _name_leaves(abstract_state)
        accept_table = functools.partial(_accept_table, abstract_leaves)
        folder = self._root / "latest"
        # Process 0 decides: a network file system may show processes different files.
        if parallel.is_main():
            arrays, metadata, step = checksums.read_newest_step(folder, accept_table)
            parallel.share_main_decision(lambda: step)
        else:  # another process reads the same step
            step = parallel.share_main_decision(lambda: None)
            arrays, metadata, _ = checksums.read_newest_step(
                folder, accept_table, [step]
            )
        leaves = [arrays[name] for name in abstract_leaves]
        state = jax.tree.unflatten(jax.tree.structure(abstract_state), leaves)
        return state, metadata, step

    def wait(self) -> None:
        """Return when everything is on disk."""
        for kind, writer in self._writers.items():
            with self._translate_write_errors(kind):
                writer.wait()

    def close(self) -> None:
        """Wait, then stop the writing threads. Closing twice is allowed."""
        with contextlib.ExitStack() as stack:  # close every writer, even if one fails
            for kind, writer in self._writers.items():
                stack.enter_context(self._translate_write_errors(kind))
                stack.callback(writer.close)
            self._writers = {}

    @contextlib.contextmanager
    def _translate_write_errors(self, kind: str) -> Iterator[None]:
        """Context that turns errors of Orbax and TensorStore into a RunError."""
        try:
            yield
        except (MemoryError, InputError, RunError):
            raise
        except Exception as error:
            complete_steps = []
            with contextlib.suppress(OSError):  # the folder may be out of reach
                complete_steps = checksums.complete_steps(self._root / kind)
            raise RunError(
                f"{self._root / kind}: a checkpoint could not be written "
                f"({_explain_failure(error)}); complete ones there: "
                f"{complete_steps or 'none'}; fix this, and the same command resumes "
                "from the newest"
            ) from error


def _accept_table(
    abstract_leaves: dict[str, Any], folder: pathlib.Path, table: dict[str, list]
) -> dict[str, list]:
    """Return a checkpoint's array table; InputError where `abstract_leaves` differ.

    table: {name: [dtype, shape, CRC32]}
    """
    model_types = {n: f"{x.dtype} {[*x.shape]}" for n, x in abstract_leaves.items()}
    saved_types = {name: f"{entry[0]} {entry[1]}" for name, entry in table.items()}
    for name, model_type, saved_type in list_differences(model_types, saved_types):
        raise InputError(
            f"{folder}: {name} is {saved_type or 'missing'}, but "
            f"{model_type or 'missing'} in the model of this config"
        )
    return table


def _name_arrays(state: PyTree) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in _name_leaves(state).items()}


def _name_leaves(tree: PyTree) -> dict[str, Any]:
    """Leaves by path: {"params/head/bias": array, "opt_state/0/mu/...": ...}."""
    keystr = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {keystr(path): leaf for path, leaf in leaves}


def _explain_failure(error: Exception) -> str:
    """Why writing failed: the operating system's reason, if there is one."""
    code_match = re.search(r"os_error_code='(\d+)'", str(error))
    if code_match:
        return os.strerror(int(code_match[1]))
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
