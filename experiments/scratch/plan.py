"""How long runs take: a measured epoch of each system, epochs that fit, time left."""

import sys
import time

from tqdm import tqdm

from experiments.scratch import train
from imagepiece_jax.errors import InputError
from imagepiece_jax.models import summary

MOST_SECONDS = 20.0  # of training that are timed, where an epoch takes longer
RESERVE = 0.03  # share of the time that is not planned
LINE_EVERY = 5.0  # seconds between lines of progress


def measure(trainee, dense, images) -> dict[str, float]:
    """Seconds to compile, of an epoch and of an evaluation of a `train.Trainee`.

    dense: the Trainee that stands for its teacher. What is trained is thrown away.
    """
    start = None
    if trainee.system.start:
        start = summary.fresh(dense.model, trainee.options.image_size, 0)
    began = time.monotonic()
    run = train.Run(trainee, images, seed=0, epochs=1, start=start)
    seconds, steps, state = run.time_steps(MOST_SECONDS)
    rate = trainee.evaluate(train.variables(state), 0, images).throughput
    evaluation = images.test_images / rate
    compilation = time.monotonic() - began - seconds - evaluation
    return {
        "compile": round(max(0.0, compilation), 2),
        "epoch": round(seconds / steps * images.steps, 3),
        "evaluate": round(evaluation, 2),
    }


def epochs_that_fit(
    measured: dict, asked: int, seeds: int, seconds: float | None
) -> int:
    """Epochs of every run, so that all runs of all seeds end in `seconds`.

    measured: by system, from `measure`. At most `asked`; InputError where not one fits.
    """
    if seconds is None:
        return asked
    evaluations = seeds * sum(each["evaluate"] for each in measured.values())
    epoch = seeds * sum(each["epoch"] for each in measured.values())
    fitting = int((seconds * (1 - RESERVE) - evaluations) / epoch)
    if fitting < 1:
        raise InputError(
            f"--hours leaves {seconds / 3600:.2f} hours, but one epoch of all runs and "
            f"their evaluations take {(epoch + evaluations) / 3600:.2f}; allowed are "
            "more hours, or fewer seeds"
        )
    return min(asked, fitting)


def seconds_of(plan: dict, system: str, epochs: int | None = None) -> float:
    """Of a run of `system`, or of what is left of it."""
    measured = plan["seconds"][system]
    epochs = plan["epochs"] if epochs is None else epochs
    return epochs * measured["epoch"] + measured["evaluate"]


class Progress:
    """Lines on a run among others: its epochs, its time left, and that of all.

    missing: (system, seed) of all runs that are left, `number` the place of this one.
    """

    def __init__(self, plan, missing, number, total):
        self.plan, self.total = plan, total
        (self.system, self.seed), *after = missing[number:]
        self.place = total - len(after)
        self.after = sum(seconds_of(plan, system) for system, _ in after)
        self.last, self.told = 0.0, 0

    def __call__(self, epoch: int, loss: float, seconds: float):
        self.told += 1
        if self.told > 1:  # the first of a call may have compiled
            self.plan["seconds"][self.system]["epoch"] = seconds
        epochs = self.plan["epochs"]
        if epoch < epochs and time.monotonic() - self.last < LINE_EVERY:
            return
        self.last = time.monotonic()
        own = seconds_of(self.plan, self.system, epochs - epoch)
        left, all_left = map(tqdm.format_interval, (own, own + self.after))
        print(
            f"run {self.place} of {self.total}, {self.system} seed {self.seed}: epoch "
            f"{epoch} of {epochs}, loss {loss:.3f}, {seconds:.1f} s; left {left}, all "
            f"runs {all_left}",
            file=sys.stderr,
            flush=True,
        )
