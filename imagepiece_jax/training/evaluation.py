"""A run's evaluations."""

import contextlib
from typing import TYPE_CHECKING

from imagepiece_jax.evaluation import accuracy
from imagepiece_jax.training.cluster.checkpoint import RunProgress
from imagepiece_jax.training.logging import RunLog

if TYPE_CHECKING:
    from imagepiece_jax.training.trainer import Run

SHARED_METRICS = ("images", "throughput")  # shared by all models of a pass


class Evaluation:
    """Evaluates a `Run` between its steps."""

    def __init__(self, run: "Run") -> None:
        self._run = run
        self._data = run.setup.data
        self._eval_step = accuracy.make_eval_step(
            run.setup.model, run.setup.config.seed
        )
        self._eval_step.compile(
            run.state.variables, self._data.val_batches.allocate_batch()
        )

    def evaluate_run(self, log: RunLog) -> RunProgress:
        """Evaluate the run; return its new RunProgress."""
        run = self._run
        log.flush()
        # Weights and averages are evaluated in one pass over the images.
        evaluated_variables = [run.state.variables]
        if run.state.ema is not None:
            evaluated_variables.append(run.state.ema)
        reader = self._data.read_ahead(self._data.val_batches)
        with contextlib.closing(reader):
            results = accuracy.evaluate_models(
                self._eval_step, evaluated_variables, reader
            )
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
