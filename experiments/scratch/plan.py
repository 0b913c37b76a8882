"""How long runs take: a measured epoch of each system, and epochs that fit."""

import statistics
import time

from imagepiece_jax.benchmark import workloads
from imagepiece_jax.common import timer
from imagepiece_jax.data import loader
from imagepiece_jax.errors import InputError

RULES = timer.Rules(warmup=2, repeats=2, seconds=5.0)
RESERVE = 0.03  # share of the time that is not planned


def measure(config, train_images: int, test_images: int) -> dict[str, float]:
    """Seconds to compile, of an epoch and of an evaluation of a config's model.

    The images are random, and are not read: that happens beside the steps.
    """
    batch = config.batch_size
    began = time.monotonic()
    train = workloads.Case(config, batch, config.model.dtype).workload("train")
    compilation = time.monotonic() - began
    step = _seconds(train.job)
    test = min(config.eval_batch_size, test_images)
    infer = workloads.Case(config, test, config.model.dtype).workload("inference")
    return {
        "compile": round(compilation, 2),
        "epoch": round(step * loader.steps_per_epoch(train_images, batch), 3),
        "evaluate": round(_seconds(infer.job) * test_images / test, 2),
    }


def _seconds(job):
    return statistics.median(timer.measure({"": job}, RULES)[""])


def epochs_that_fit(
    measured: dict, asked: int, seeds: int, seconds: float | None
) -> int:
    """Epochs of every run, so that all runs of all seeds end in `seconds`.

    measured: by system, from `measure`. At most `asked`; InputError where not one fits.
    """
    if seconds is None:
        return asked
    once = seeds * sum(seconds_of(each, 0) for each in measured.values())
    epoch = seeds * sum(each["epoch"] for each in measured.values())
    fitting = int((seconds * (1 - RESERVE) - once) / epoch)
    if fitting < 1:
        raise InputError(
            f"--hours leaves {seconds / 3600:.2f} hours, but one epoch of all runs, "
            f"their compilation and evaluations take {(epoch + once) / 3600:.2f}; "
            "allowed: more hours, or fewer seeds"
        )
    return min(asked, fitting)


def seconds_of(measured: dict, epochs: int) -> float:
    """Key of a system's run, from `measure`."""
    return measured["compile"] + epochs * measured["epoch"] + measured["evaluate"]
