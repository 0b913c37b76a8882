"""What keeps a run alive, for the trainer: its folder, its checkpoints and its stops.

`held` locks the folder and compares the processes, `Keeper.begin` resumes, and
`Keeper.after_step` saves and stops. The other files of this folder have the parts.
"""

import contextlib
import dataclasses

from imagepiece_jax.common import parallel
from imagepiece_jax.common.files import locked
from imagepiece_jax.errors import Stopped
from imagepiece_jax.training.cluster import job, run_dir
from imagepiece_jax.training.cluster.checkpoint import Checkpoints, RunProgress
from imagepiece_jax.training.cluster.preemption import StopRequest


@contextlib.contextmanager
def held(plan, dry_run: bool = False):
    """While entered, no other run has the folder of a RunPlan. Yields its Keeper.

    dry_run: neither write nor lock
    Raises InputError where processes disagree on the plan, and for a folder of another
        run, or one that is in use.
    """
    workdir = plan.workdir
    fields = plan.config.to_dict()
    job.check_same_settings(dry_run, fields, plan.model, plan.data)
    run_dir.check_place(workdir, plan.config.data.name)
    run_dir.check_config(workdir, fields)
    with contextlib.ExitStack() as stack:
        if parallel.is_main() and not dry_run:
            stack.enter_context(locked("workdir", workdir))
        yield Keeper(plan, fields, dry_run)


class Keeper:
    """Keeps one run, which it begins, saves after steps, and stops at a signal.

    resumed: whether the run has a checkpoint
    """

    def __init__(self, plan, fields, dry_run):
        self._plan = plan
        self._fields = fields
        self._dry_run = dry_run
        self._checkpoints = Checkpoints(plan.workdir, plan.config.keep_every_steps)
        self._request = None  # a StopRequest, in `guarding`
        self._saved = 0  # the step that the run begins after, or that was saved last
        self.last_saved = self._checkpoints.latest_step
        self.resumed = parallel.from_main(self.last_saved) is not None

    def begin(self, state, frozen, class_names, teacher=None):
        """(state, RunProgress, step) that the run begins with; notes config and start.

        state: the first one; of a resumed run shapes are enough
        frozen: other arrays, in which processes must not differ either
        class_names: of the model; None: those that the folder has stay
        teacher: its record; None: there is none
        Raises InputError for a checkpoint of another run.
        """
        plan = self._plan
        if not self._dry_run:
            plan.data.check_space()
        digest = parallel.from_main(plan.data.digest)
        values = {"mean": [*plan.model.config.mean], "std": [*plan.model.config.std]}
        counts = plan.data.image_counts
        progress = RunProgress(counts, digest, normalization=values, teacher=teacher)
        if self.resumed:
            state, saved, self._saved = self._checkpoints.restore(state)
            data = plan.config.data.name
            progress = progress.resumed(saved, data, plan.workdir)
        job.check_same_start(self._saved, (state, frozen))
        if parallel.is_main() and not self._dry_run:  # the first that is written
            run_dir.record_start(plan.workdir, self._fields)
            run_dir.record_classes(plan.workdir, class_names)
        return state, progress, self._saved

    @contextlib.contextmanager
    def guarding(self):
        """While entered, a signal requests a stop. Yields the StopRequest.

        At the end all checkpoints are on disk.
        """
        with (
            StopRequest(parallel.max_over_processes()) as self._request,
            self._checkpoints,
        ):
            yield self._request

    @contextlib.contextmanager
    def compiling(self, run, log):
        """While entered, a signal ends the process, whose state is saved before."""
        if run.step > self._saved:
            self.save(run, log)
            self._checkpoints.wait()
        with self._request.ending_at_once():
            yield

    def after_step(self, run, log):
        """Save a Run where that is due, and stop it where that is requested.

        Raises Stopped after a signal, once the state is saved, and RunError where it
        cannot be.
        """
        signum = self._request.requested()
        evaluated = run.progress.evaluated == run.step
        if signum or evaluated or self._plan.config.saves(run.step):
            self.save(run, log)
        if run.complete:
            self._request.ignoring = True
        elif signum:
            raise Stopped(signum, run.step)

    def stop_if_requested(self, run):
        """Raise Stopped after a signal, where nothing is to be saved."""
        if signum := self._request.requested():
            raise Stopped(signum, run.step)

    def save(self, run, log):
        """Save a Run after its step, and as the best too if it is that."""
        log.flush()  # lines first: a kill between the two loses nothing
        state = parallel.unreplicate(run.state)
        meta = dataclasses.asdict(run.progress)
        if run.progress.best["step"] == run.step:
            self._checkpoints.save(run.step, state, meta, "best")
        if run.step == self._saved:  # it was stopped in its evaluation, and resumed
            self._checkpoints.replace_facts(run.step, state, meta)
        else:
            self._checkpoints.save(run.step, state, meta)
        self._saved = run.step
