"""The evaluations of a run."""

import contextlib
import functools

from imagepiece_jax.common import parallel
from imagepiece_jax.config.run import BEST_BY
from imagepiece_jax.evaluate import accuracy
from imagepiece_jax.training.cluster.preemption import Interrupted
from imagepiece_jax.training.logging import AGREEMENT, accuracy_or_agreement

OF_A_PASS = ("images", "throughput")  # figures that all models of a pass share


class Evaluation:
    """Evaluates a `Run` between its steps.

    Test images without labels get the teacher's first classes as labels. Accuracy is
    then called agreement.

    The evaluation is compiled when the object is made, before there is anything to
    save.

    log: the run's RunLog
    request: the run's StopRequest
    """

    def __init__(self, run, log, request):
        plan = run.plan
        self._run = run
        self._plan = plan
        self._log = log
        self._request = request
        self._first = plan.data.evaluations[plan.config.eval.best_set]
        with request.ending_at_once():
            self._programs = self._compiled(plan.model, run.state.variables)

    def _compiled(self, model, variables):
        """{whether images have labels: compiled evaluation of a batch}."""
        plan = self._plan
        programs = {}
        for labeled in {source.labeled for source in plan.data.eval_sets.values()}:
            teacher = None
            frozen = ()
            if not labeled:
                teacher = self._run.teacher.answers
                frozen = (self._run.frozen,)
            step = accuracy.model_step(model, plan.config.seed, teacher=teacher)
            step.compile(variables, self._first.empty(), *frozen)
            programs[labeled] = functools.partial(_evaluate, step, frozen)
        return programs

    def log_dense(self, variables):
        """Log the accuracy of the dense model that the run starts from.

        After a signal, nothing is logged.
        """
        variables = parallel.replicate(variables)
        with self._request.ending_at_once():
            programs = self._compiled(self._plan.dense, variables)
        with contextlib.suppress(Interrupted):
            for name in self._plan.data.evaluations:
                (figures,) = self._accuracy(programs, [variables], name)
                who = "the dense model as given has "
                self._log.evaluation("init", 0, figures, name, who)

    def after_step(self):
        """Evaluate the run; return its new Progress.

        After a signal it returns the Progress as it was.
        """
        run = self._run
        log = self._log
        log.flush()
        state = run.state
        models = [state.variables]
        if state.ema is not None:
            models.append(state.ema)
        by_set = {}
        try:
            for name in self._plan.data.length.due(run.step):
                by_set[name], *averages = self._accuracy(self._programs, models, name)
                for found in averages:
                    kept = {k: v for k, v in found.items() if k not in OF_A_PASS}
                    by_set[name] |= {f"ema_{k}": value for k, value in kept.items()}
        except Interrupted:
            return run.progress
        for name, figures in by_set.items():
            log.evaluation("eval", run.step, figures, name)
        log.restart_clock()
        config = self._plan.config
        best_set = config.eval.best_set
        best_by = BEST_BY[config.best_by]
        if not self._plan.data.eval_sets[best_set].labeled:
            best_by = best_by.replace("acc", AGREEMENT)
        return run.progress.with_evaluation(run.step, by_set, best_set, best_by)

    def _accuracy(self, programs, models, name):
        """The figures of several models, by one pass over the set `name`."""
        data = self._plan.data
        labeled = data.eval_sets[name].labeled
        reader = data.read(data.evaluations[name])
        with contextlib.closing(reader):
            batches = self._request.until_requested(reader)
            results = accuracy.evaluate_each(programs[labeled], models, batches)
        return [accuracy_or_agreement(result.figures, labeled) for result in results]


def _evaluate(step, frozen, variables, batch):
    """The results of a step, whose last arguments are the teacher's variables."""
    return step(variables, batch, *frozen)
