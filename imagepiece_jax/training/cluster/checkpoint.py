"""A run's checkpoints, and its progress that they hold.

    workdir/checkpoints/latest/STEP/    the newest steps, from which a run resumes
    workdir/checkpoints/best/STEP/      the best steps; later steps do not remove them

Process 0 writes, all processes read. If a step is damaged, the step before it is read.
"""

import contextlib
import dataclasses
import os
import pathlib
import re
from typing import Any

from imagepiece_jax.common import checkpoints, parallel
from imagepiece_jax.errors import RunError
from imagepiece_jax.training.logging import CLOCKED_METRICS
from imagepiece_jax.weights.folder_files import CHECKPOINTS_FOLDER

NUM_KEPT = 2  # newest steps per kind; the second serves if the newest is damaged


@dataclasses.dataclass(frozen=True)
class RunProgress:
    """Metadata of a checkpoint, as JSON values: images and evaluations."""

    digest: list[str]  # of the training and validation images
    # step and accuracy of the best evaluation
    best: dict = dataclasses.field(default_factory=lambda: {"acc1": -1.0, "step": 0})
    last: dict | None = None  # metrics of the last evaluation
    teacher: str = ""  # digest of its weights
    normalization: list = dataclasses.field(default_factory=list)  # mean and std

    def with_evaluation(
        self, step: int, metrics: dict, may_choose: bool = True
    ) -> "RunProgress":
        """Add an evaluation at `step`; `may_choose`: images may choose a checkpoint."""
        best = self.best
        # If the images may not choose, the last step is the best.
        if metrics["acc1"] > best["acc1"] or not may_choose:
            best = {"acc1": metrics["acc1"], "step": step}
        # Times stay out, so that all runs of one config have equal checkpoints.
        last_metrics = metrics.copy()
        for name in CLOCKED_METRICS:
            last_metrics.pop(name, None)
        return dataclasses.replace(self, best=best, last=last_metrics)


class Checkpoints:
    """Checkpoints of one run. Reading does not change the folder.

    keep_every: multiples of this step count are never removed; 0: no extra steps stay
    Raises RunError if writing fails: in `save`, or, as writing continues in the
        background, in the next `save` or `close`.
    """

    def __init__(self, workdir: str | os.PathLike, keep_every: int = 0) -> None:
        self._root = pathlib.Path(workdir).resolve() / CHECKPOINTS_FOLDER
        self._keep_every = keep_every
        self._managers = {}  # by kind, each made by the first save

    def save(self, step: int, state: Any, metadata: dict, kind: str = "latest") -> None:
        """Start saving a state, a flax struct of NumPy arrays, and JSON metadata."""
        if not parallel.is_main():
            return
        with self._explained_errors():
            if kind not in self._managers:
                keep_every = self._keep_every if kind == "latest" else 0
                folder = self._root / kind
                manager = checkpoints.open_steps(folder, NUM_KEPT, keep_every)
                # Later steps are damaged, or abandoned by a resume from an earlier one.
                for saved_step in manager.all_steps():
                    if saved_step >= step:
                        manager.delete(saved_step)
                self._managers[kind] = manager
            checkpoints.start_saving(self._managers[kind], step, state, metadata)

    def restore(self, abstract_state: Any) -> tuple[Any, dict, int]:
        """Read the newest intact step: (state, metadata, step).

        abstract_state: the state with a jax.ShapeDtypeStruct for each array
        """
        folder = self._root / "latest"
        return checkpoints.read_newest_step(folder, lambda _: abstract_state)

    def close(self) -> None:
        """Wait until everything is on disk."""
        with self._explained_errors():
            while self._managers:  # a manager that fails is not closed again
                _, manager = self._managers.popitem()
                manager.close()

    @contextlib.contextmanager
    def _explained_errors(self):
        """Turn the errors of Orbax and TensorStore into a RunError."""
        try:
            yield
        except Exception as error:  # they raise many types
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            if code := re.search(r"os_error_code='(\d+)'", str(error)):
                reason = os.strerror(int(code[1]))
            problem = f"{self._root}: a checkpoint cannot be written ({reason})"
            raise RunError(f"{problem}; the same command resumes") from error
