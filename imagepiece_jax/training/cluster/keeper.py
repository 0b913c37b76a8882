"""A run's folder, checkpoints and stops, for the trainer.

`held_workdir` locks the folder and compares the processes. `Keeper.begin_run` resumes,
and `Keeper.save_or_stop` saves and stops. Its parts are the folder's other files.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Protocol

from jaxtyping import PyTree

from imagepiece_jax.common import parallel
from imagepiece_jax.common.files import locked_folder
from imagepiece_jax.errors import Stopped
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.training.cluster import job, run_dir
from imagepiece_jax.training.cluster.checkpoint import Checkpoints, RunProgress
from imagepiece_jax.training.cluster.preemption import StopRequest
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.training.data import RunData
from imagepiece_jax.training.logging import RunLog


class SavableRun(Protocol):
    """A run between two steps, as a Keeper saves it."""

    state: PyTree  # on all devices
    progress: RunProgress
    step: int

    @property
    def is_complete(self) -> bool: ...


@contextlib.contextmanager
def held_workdir(
    workdir: pathlib.Path, config: RunConfig, model: ViT, data: RunData, dry_run: bool
) -> Iterator["Keeper"]:
    """Context in which no other run uses the folder. Yields the run's Keeper.

    dry_run: neither write nor lock
    Raises InputError if processes disagree on the run, or the folder is in use or
        belongs to another run.
    """
    config_fields = config.to_dict()
    job.check_same_settings(dry_run, config_fields, model, data)
    run_dir.check_workdir_place(workdir, config.data.name)
    run_dir.check_config(workdir, config_fields)
    with contextlib.ExitStack() as stack:
        if parallel.is_main() and not dry_run:
            stack.enter_context(locked_folder("workdir", workdir))
        yield Keeper(workdir, config, data, dry_run)


class Keeper:
    """Begins a run, saves it after steps, and stops it at a signal."""

    def __init__(
        self, workdir: pathlib.Path, config: RunConfig, data: RunData, dry_run: bool
    ) -> None:
        self._workdir = workdir
        self._config = config
        self._data = data
        self._dry_run = dry_run
        self._checkpoints = Checkpoints(workdir, config.keep_every_steps)
        self._stop_request = StopRequest(parallel.make_max_over_processes())
        self._saved_step = 0  # the last saved step; at first, the step to resume from
        self.find_saved_step = self._checkpoints.find_latest_step
        # Whether the run has a checkpoint; process 0 looks.
        self.has_checkpoint = (
            parallel.share_main_decision(self.find_saved_step) is not None
        )

    def begin_run(
        self, state: PyTree, teacher_variables: PyTree, teacher_record: dict | None
    ) -> tuple[PyTree, RunProgress, int]:
        """Start or resume the run, and record the start: (state, RunProgress, step).

        state: the first state; for a resumed run jax.ShapeDtypeStructs will do
        teacher_variables: equal in all processes
        teacher_record: `Teacher.make_record`; None: no teacher
        Raises InputError for a checkpoint of another run.
        """
        data = self._data
        if not self._dry_run:
            data.check_space()
        data_digests = data.find_digests()
        vit_config = self._config.vit_config
        normalization = {"mean": [*vit_config.mean], "std": [*vit_config.std]}
        progress = RunProgress(
            data.image_counts,
            data_digests,
            normalization=normalization,
            teacher=teacher_record,
        )
        if self.has_checkpoint:
            state, saved_fields, self._saved_step = self._checkpoints.restore(state)
            data_name = self._config.data.name
            progress = progress.resume_saved(saved_fields, data_name, self._workdir)
        job.check_same_start(self._saved_step, (state, teacher_variables))
        if parallel.is_main() and not self._dry_run:  # nothing is written before
            config_fields = self._config.to_dict()
            run_dir.record_start(self._workdir, config_fields, data.train.class_names)
        return state, progress, self._saved_step

    @contextlib.contextmanager
    def guarded_steps(self) -> Iterator[StopRequest]:
        """Yield a StopRequest for signals; at the end all checkpoints are on disk."""
        # Checkpoints close first, while signals are still handled.
        with self._stop_request, self._checkpoints:
            yield self._stop_request

    @contextlib.contextmanager
    def guarded_compilation(self, run: SavableRun, log: RunLog) -> Iterator[None]:
        """Save the state, then let a signal end the process at once."""
        # No Python handler runs during compilation, so nothing could be saved then.
        if run.step > self._saved_step:
            self.save_run(run, log)
            self._checkpoints.wait()
        with self._stop_request.ending_at_once():
            yield

    def save_or_stop(self, run: SavableRun, log: RunLog) -> None:
        """Save a Run if that is due; after a signal, save it and raise Stopped."""
        signum = self._stop_request.stop_signal()
        is_evaluated = run.progress.evaluated == run.step
        if signum or is_evaluated or self._config.saves_step(run.step):
            self.save_run(run, log)
        if run.is_complete:
            self._stop_request.ignores_signals = True  # nothing is left to stop
        elif signum:
            raise Stopped(signum, run.step)

    def stop_if_requested(self, run: SavableRun) -> None:
        """Raise Stopped after a signal, before there is anything to save."""
        if signum := self._stop_request.stop_signal():
            raise Stopped(signum, run.step)

    def save_run(self, run: SavableRun, log: RunLog) -> None:
        """Save a Run after its step; also as "best", if this step is best."""
        log.flush()  # lines first: a kill between the two loses nothing
        state = parallel.unreplicate(run.state)
        metadata = dataclasses.asdict(run.progress)
        if run.progress.best["step"] == run.step:
            self._checkpoints.save(run.step, state, metadata, "best")
        if run.step == self._saved_step:  # stopped in its evaluation, and resumed
            self._checkpoints.replace_metadata(run.step, state, metadata)
        else:
            self._checkpoints.save(run.step, state, metadata)
        self._saved_step = run.step
