"""What do all experiments share? Images, models, and how a point is measured."""

import base64
import dataclasses
import functools
import pathlib
from typing import Any

import jax
import numpy as np

from imagepiece_jax.benchmark import device, timer
from imagepiece_jax.common import parallel
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate import accuracy, statistics
from imagepiece_jax.inference import optimize
from imagepiece_jax.models import pretrained, registry
from imagepiece_jax.models.run_files import RUN_CONFIG
from imagepiece_jax.reduction import settings

KEPT = 64  # compiled programs
INPUTS = 4  # different batches of noise that take turns on the clock


@dataclasses.dataclass(frozen=True, eq=False)
class Lab:
    """Everything that an experiment is given.

    subject: the one model, off the shelf; trained: runs that were given; small: what
    makes runs where none are (small.Small). rules, speed_batch, timed: how, and
    whether, the clock runs; options: what single experiments are told.
    """

    points: Any
    images: Any
    out: pathlib.Path
    subject: pretrained.Pretrained | None = None
    trained: tuple = ()
    small: Any = None
    rules: timer.Rules = timer.Rules()
    speed_batch: int = 64
    timed: bool = True
    options: dict = dataclasses.field(default_factory=dict)
    steps: dict = dataclasses.field(default_factory=dict)  # compiled, the last few

    def one(self):
        """The model of an experiment that asks one; InputError where there is none."""
        if self.subject is None:
            raise InputError("--weights is missing: a weights file or a run's folder")
        return self.subject

    def answers(self, subject, reduction, images=None):
        """What `subject` with `reduction` says of all images: an Answers."""
        return self._answers(subject, reduction, images or self.images, {}, None)

    def altered(self, subject, reduction, alteration, alter, prepare):
        """`answers` to images changed by `alter` (see accuracy.eval_step).

        alteration: what it does, as part of the setting; prepare(batch): the batch with
        what `alter` reads. The same `alter` is compiled once for a model.
        """
        return self._answers(
            subject, reduction, self.images, alteration, (alter, prepare)
        )

    def _answers(self, subject, reduction, images, more, altering):
        setting = self._setting("accuracy", subject, reduction, images) | more

        def measure():
            model = subject.model(reduction)
            variables, untrained = subject.variables(model)
            alter, prepare = altering or (None, None)
            batches = images.batches()
            batches = map(prepare, batches) if prepare else batches
            step = self._step(subject, reduction, alter)
            found = accuracy.evaluate(step, parallel.replicate(variables), batches)
            return {
                "acc1": found.acc1,
                "acc5": found.acc5,
                "loss": found.loss,
                "probability": float(found.each["probability"].mean()),
                "images": found.images,
                "untrained_selectors": untrained,
                **plan_facts(model, subject.image_size),
                "right": _packed(found.each["right"]),
            }

        what = f"{settings.label(reduction)}, {len(images)} images"
        return Answers(self.points.result(setting, measure, what))

    def _step(self, subject, reduction, alter):
        """A compiled step, kept for other seeds and images of the same model."""
        fields = [subject.fields[name] for name in sorted(subject.fields)]
        key = str(fields), str(settings.completed(reduction)), alter
        if key not in self.steps:
            while len(self.steps) >= KEPT:
                self.steps.pop(next(iter(self.steps)))
            model = subject.model(reduction)
            self.steps[key] = accuracy.compiled(model, alter=alter)
        return self.steps[key]

    def inside(self, kind, subject, reduction, measure, model, summarise):
        """What `measure(outputs, batch)` finds in `model`, by `summarise(arrays)`.

        kind: what it is, as part of the setting. -> a dict of JSON values.
        """
        setting = self._setting(kind, subject, reduction, self.images)

        def found():
            variables, _ = subject.variables(subject.model(reduction))
            step = accuracy.compiled(model, measure=measure)
            arrays = accuracy.evaluate(
                step, parallel.replicate(variables), self.images.batches()
            ).each
            return summarise(arrays) | {"images": len(arrays["index"])}

        what = f"inside {settings.label(reduction)}, {len(self.images)} images"
        return self.points.result(setting, found, what)

    def speed(self, subject, reduction):
        """How many times as fast as the dense model of the same weights, in turns.

        dict: ratio, ratio_min, ratio_max, throughput (img/s, median), ms a batch;
        None where nothing is to be timed.
        """
        if not self.timed:
            return None
        setting = {
            "kind": "speed",
            "fields": _plain(subject.fields),
            "reduction": _plain(settings.completed(reduction)),
            "batch_size": self.speed_batch,
            "device": device.name(),
            **dataclasses.asdict(self.rules),
        }
        return self.points.result(
            setting,
            functools.partial(self._time, subject, reduction),
            f"the speed of {settings.label(reduction)}",
        )

    def _time(self, subject, reduction):
        jobs, seconds = {}, {}
        for name, wanted in (("dense", settings.DENSE), ("reduced", reduction)):
            model = subject.model(wanted)
            variables, _ = subject.variables(model)
            fast = optimize.optimize(
                model,
                variables,
                batch_size=self.speed_batch,
                dtype=subject.fields.get("dtype", device.fast_dtype()),
            )
            seconds[name] = fast.compile_seconds
            jobs[name] = device.job(functools.partial(_call, fast, _noise(fast)))
        times = timer.measure(jobs, self.rules)
        ratio = timer.spread(timer.speedups(times["dense"], times["reduced"]))
        ours = timer.spread(times["reduced"])
        return {
            "ratio": ratio.median,
            "ratio_min": ratio.low,
            "ratio_max": ratio.high,
            "throughput": self.speed_batch / ours.median,
            "throughput_min": self.speed_batch / ours.high,
            "throughput_max": self.speed_batch / ours.low,
            "ms": 1e3 * ours.median,
            "dense_ms": 1e3 * timer.spread(times["dense"]).median,
            "compile_s": seconds["reduced"],
        }

    def _setting(self, kind, subject, reduction, images):
        return {
            "kind": kind,
            "weights": subject.digest,
            "fields": _plain(subject.fields),
            "reduction": _plain(settings.completed(reduction)),
            "use": subject.use(reduction),
            "trained_as": _plain(subject.reduction),
            "seed": subject.seed,
            **images.setting,
        }


def runs_in(folder, dtype=None):
    """All runs in `folder` by name, as Pretrained; InputError if there are none."""
    found = sorted(pathlib.Path(folder).glob(f"*/{RUN_CONFIG}"))
    if not found:
        raise InputError(
            f"--runs {folder} holds no run; allowed is a folder whose folders are runs "
            "of train.py"
        )
    return [pretrained.for_analysis(path.parent, dtype=dtype) for path in found]


class Answers:
    """One model's answers: `right` [images] bool, and the figures of its point."""

    def __init__(self, result):
        self.figures = result
        self.right = _unpacked(result["right"], result["images"])

    def __getitem__(self, name):
        return self.figures[name]

    @property
    def accuracy(self):
        return statistics.accuracy(self.right)


def plan_facts(model, image_size):
    """What a plan decides: GMACs, tokens into and out of each block, tokens left."""
    return {
        "gmacs": registry.model_macs(model, image_size) / 1e9,
        "tokens_per_block": [[p.attn_tokens, p.mlp_tokens] for p in model.plan],
        "tokens": model.plan[-1].mlp_tokens,
    }


def _call(fast, images, number):
    return fast(images[number % len(images)])


def _noise(fast):
    keys = jax.random.split(jax.random.key(0), INPUTS)
    return [jax.random.normal(k, fast.images.shape, fast.images.dtype) for k in keys]


def _packed(right):
    return base64.b64encode(np.packbits(right).tobytes()).decode()


def _unpacked(text, count):
    data = np.frombuffer(base64.b64decode(text), np.uint8)
    return np.unpackbits(data)[:count].astype(bool)


def _plain(fields):
    """Tuples as lists, as JSON has them."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}
