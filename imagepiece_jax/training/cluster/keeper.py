"""A run's folder, checkpoints and stops, for the trainer.

`held_workdir` locks the folder and compares the processes. `Keeper.begin_run` resumes,
and `Keeper.after_step` saves and stops. The other files of this folder have the parts.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from jaxtyping import PyTree

from imagepiece_jax.common import parallel
from imagepiece_jax.common.files import locked_folder
from imagepiece_jax.errors import Stopped
from imagepiece_jax.training.cluster import job, run_dir
from imagepiece_jax.training.cluster.checkpoint import Checkpoints, RunProgress
from imagepiece_jax.training.cluster.preemption import StopRequest
from imagepiece_jax.training.logging import RunLog


@contextlib.contextmanager
def held_workdir(plan: Any, dry_run: bool = False) -> Iterator["Keeper"]:
    """Context in which no other run uses a RunPlan's folder. Yields its Keeper.

    dry_run: neither write nor lock
    Raises InputError if processes disagree on the plan, or the folder is in use or
        belongs to another run.
    """
    workdir = plan.workdir
    fields = plan.config.to_dict()
    job.check_same_settings(dry_run, fields, plan.model, plan.data)
    run_dir.check_workdir_place(workdir, plan.config.data.name)
    run_dir.check_config(workdir, fields)
    with contextlib.ExitStack() as stack:
        if parallel.is_main() and not dry_run:
            stack.enter_context(locked_folder("workdir", workdir))
        yield Keeper(plan, fields, dry_run)


class Keeper:
    """Begins a run, saves it after steps, and stops it at a signal."""

    def __init__(self, plan: Any, fields: dict, dry_run: bool) -> None:
        self._plan = plan
        self._fields = fields
        self._dry_run = dry_run
        self._checkpoints = Checkpoints(plan.workdir, plan.config.keep_every_steps)
        self._request = StopRequest(parallel.max_over_processes())
        self._saved_step = 0  # the last saved step; at first, the step to resume from
        self.find_last_saved = self._checkpoints.latest_step
        # Whether the run has a checkpoint; process 0 looks.
        self.has_checkpoint = parallel.decided_by_main(self.find_last_saved) is not None

    def begin_run(
        self,
        state: PyTree,
        frozen: PyTree,
        class_names: Sequence[str | None] | None,
        teacher: dict | None = None,
    ) -> tuple[PyTree, RunProgress, int]:
        """Start or resume the run, and record the start: (state, RunProgress, step).

        state: the first state; for a resumed run jax.ShapeDtypeStructs will do
        frozen: arrays that are not trained (the teacher's), equal in all processes
        class_names: the data's class names; None: those in the folder stay
        teacher: `Teacher.record`; None: no teacher
        Raises InputError for a checkpoint of another run.
        """
        plan = self._plan
        if not self._dry_run:
            plan.data.check_space()
        # Only process 0 reads all images for the digest.
        digest = parallel.decided_by_main(plan.data.content_digests)
        values = {"mean": [*plan.model.config.mean], "std": [*plan.model.config.std]}
        counts = plan.data.image_counts
        progress = RunProgress(counts, digest, normalization=values, teacher=teacher)
        if self.has_checkpoint:
            state, saved, self._saved_step = self._checkpoints.restore(state)
            data = plan.config.data.name
            progress = progress.resume_saved(saved, data, plan.workdir)
        job.check_same_start(self._saved_step, (state, frozen))
        if parallel.is_main() and not self._dry_run:  # nothing is written before
            run_dir.record_start(plan.workdir, self._fields)
            run_dir.record_classes(plan.workdir, class_names)
        return state, progress, self._saved_step

    @contextlib.contextmanager
    def guarded_steps(self) -> Iterator[StopRequest]:
        """Yield a StopRequest for signals; at the end all checkpoints are on disk."""
        # Checkpoints close first, while signals are still handled.
        with self._request, self._checkpoints:
            yield self._request

    @contextlib.contextmanager
    def guarded_compilation(self, run: Any, log: RunLog) -> Iterator[None]:
        """Save the state, then let a signal end the process at once."""
        # No Python handler runs during compilation, so nothing could be saved then.
        if run.step > self._saved_step:
            self.save_run(run, log)
            self._checkpoints.wait()
        with self._request.ending_at_once():
            yield

    def after_step(self, run: Any, log: RunLog) -> None:
        """Save a Run if that is due; after a signal, save it and raise Stopped."""
        signum = self._request.stop_signal()
        evaluated = run.progress.evaluated == run.step
        if signum or evaluated or self._plan.config.saves_step(run.step):
            self.save_run(run, log)
        if run.is_complete:
            self._request.ignores_signals = True  # nothing is left to stop
        elif signum:
            raise Stopped(signum, run.step)

    def stop_if_requested(self, run: Any) -> None:
        """Raise Stopped after a signal, before there is anything to save."""
        if signum := self._request.stop_signal():
            raise Stopped(signum, run.step)

    def save_run(self, run: Any, log: RunLog) -> None:
        """Save a Run after its step; also as "best", if this step is best."""
        log.flush()  # lines first: a kill between the two loses nothing
        state = parallel.unreplicate(run.state)
        meta = dataclasses.asdict(run.progress)
        if run.progress.best["step"] == run.step:
            self._checkpoints.save(run.step, state, meta, "best")
        if run.step == self._saved_step:  # stopped in its evaluation, and resumed
            self._checkpoints.replace_facts(run.step, state, meta)
        else:
            self._checkpoints.save(run.step, state, meta)
        self._saved_step = run.step
