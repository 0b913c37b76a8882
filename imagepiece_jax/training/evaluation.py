"""A run's evaluations."""

import contextlib
from typing import TYPE_CHECKING

from imagepiece_jax.evaluation import accuracy
from imagepiece_jax.training.cluster.checkpoint import RunProgress
from imagepiece_jax.training.cluster.preemption import Interrupted, StopRequest
from imagepiece_jax.training.logging import RunLog

if TYPE_CHECKING:
    from imagepiece_jax.training.trainer import Run

SHARED_METRICS = ("images", "throughput")  # shared by all models of a pass


class Evaluation:
    """Evaluates a `Run` between its steps; `request` is its StopRequest."""

    def __init__(self, run: "Run", log: RunLog, stop_request: StopRequest) -> None:
        setup = run.setup
        self._run = run
        self._data = setup.data
        self._log = log
        self._stop_request = stop_request
        # Compiled here, with nothing to save yet: a signal ends compilation at once.
        with stop_request.ending_at_once():
            self._eval_step = accuracy.make_eval_step(setup.model, setup.config.seed)
            self._eval_step.compile(
                run.state.variables, self._data.val_batches.allocate_batch()
            )

    def evaluate_run(self) -> RunProgress:
        """Evaluate the run; return its new RunProgress, or the old after a signal."""
        run = self._run
        log = self._log
        log.flush()
        state = run.state
        # Weights and averages are evaluated in one pass over the images.
        evaluated_variables = [state.variables]
        if state.ema is not None:
            evaluated_variables.append(state.ema)
        reader = self._data.read_ahead(self._data.val_batches)
        with contextlib.closing(reader):
            batches = self._stop_request.until_requested(reader)
            try:
                results = accuracy.evaluate_models(
                    self._eval_step, evaluated_variables, batches
                )
            except Interrupted:
                return run.progress
        metrics, *all_ema_metrics = [result.metrics for result in results]
        for ema_metrics in all_ema_metrics:
            for name, value in ema_metrics.items():
                if name not in SHARED_METRICS:
                    metrics[f"ema_{name}"] = value
        log.write_evaluation(run.step, metrics)
        log.restart_clock()
        # A test split chooses no checkpoint.
        may_choose = self._data.val.split != "test"
        return run.progress.with_evaluation(run.step, metrics, may_choose)
