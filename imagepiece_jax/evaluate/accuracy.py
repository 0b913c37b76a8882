"""The evaluation pass: accuracy and loss over a split, and of every image."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from imagepiece_jax.common import parallel, xla_options
from imagepiece_jax.common.placement import Placement
from imagepiece_jax.common.rng import Purpose, sample_keys
from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.evaluate import statistics


@dataclasses.dataclass(frozen=True, eq=False)
class EvalResult:
    """One pass over a split."""

    acc1: float  # percent
    acc5: float  # percent
    loss: float  # mean cross-entropy
    images: int
    throughput: float  # images a second
    # Arrays with a row for every image that this process read, in the order of the
    # split: index (its place there), right and right5 (the label is the first, among
    # the first five), loss, and further measures of the step.
    each: Mapping[str, np.ndarray] = dataclasses.field(repr=False)

    @property
    def figures(self) -> dict[str, float]:
        """The numbers over the split, by name."""
        return {k: value for k, value in vars(self).items() if k != "each"}


def line(figures: Mapping[str, float], *more: str) -> str:
    """The figures of an EvalResult, and `more` texts, as one line."""
    parts = [f"acc1 {figures['acc1']:.2f} %", f"acc5 {figures['acc5']:.2f} %"]
    parts += [f"loss {figures['loss']:.4f}", f"images {figures['images']}", *more]
    return "  ".join([*parts, f"throughput {figures['throughput']:.1f} img/s"])


def correct_at(logits: jax.Array, labels: jax.Array, k: int) -> jax.Array:
    """Whether the label is among the k largest logits. [B, C], int [B] -> bool [B].

    The lower class of equal logits counts as larger, so a network that says the same
    for every class is right for k classes only. A label whose logit is NaN never is.
    """
    chex.assert_rank([logits, labels], [2, 1])
    mine = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    classes = jnp.arange(logits.shape[-1], dtype=labels.dtype)
    lower = classes[None, :] < labels[:, None]
    ahead = jnp.sum((logits > mine) | ((logits == mine) & lower), axis=-1)
    return (ahead < k) & ~jnp.isnan(mine[:, 0])


def _score(logits, label, valid=None):
    """Arrays [m] of each image, by name; no class but the `valid` ones is an answer."""
    if valid is not None:
        answers = np.isin(np.arange(logits.shape[-1]), valid)
        logits = jnp.where(answers, logits, -jnp.inf)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return {
        "right": correct_at(logits, label, 1),
        "right5": correct_at(logits, label, min(5, logits.shape[-1])),
        "loss": loss,
    }


def _sums(each, mask):
    """Sums over one device's batch, by name of the result."""
    values = {"acc1": each["right"], "acc5": each["right5"], "loss": each["loss"]}
    values["images"] = jnp.ones_like(mask)
    # A masked image may give anything, NaN too: select, do not multiply.
    return {
        name: jnp.sum(jnp.where(mask > 0, value.astype(jnp.float32), 0))
        for name, value in values.items()
    }


def model_step(
    model,
    seed: int = 0,
    precision: str | None = None,
    measure: Callable[..., dict[str, jax.Array]] | None = None,
    alter: Callable[..., jax.Array] | None = None,
    valid: tuple[int, ...] | None = None,
    teacher: Callable[..., jax.Array] | None = None,
):
    """The evaluation of a batch on all devices: step(replicated variables, batch).

    A device's batch is image uint8 [m, S, S, 3]; label, mask and index (of the image in
    its set) [m]. The step returns sums over all devices, and arrays [m, ..] of each
    image, both by name.

    model: `head_only` without a measure, which may read tokens
    seed: of reducers that draw, by (seed, index): the same in every pass
    precision: "highest" keeps all of float32 in products, of which GPUs otherwise round
        the factors (TF32)
    measure: (outputs, batch) -> more arrays of each image, by name
    alter: (images, batch, model) -> the normalized images that the model sees
    valid: labels of the classes that the model chooses among; None: all
    teacher: (variables, normalized images) -> logits of another model, whose first
        classes are the labels; its variables, replicated, are the step's last argument
    Raises InputError for a dtype of the model that the platform cannot compute in.
    """
    xla_options.check_dtype(model.dtype.name)
    model = model.clone(head_only=measure is None)

    def step(variables, batch, *of_teacher):
        keys = {"reducer": sample_keys(seed, 0, batch["index"], Purpose.REDUCER_EVAL)}
        images = normalize(batch["image"], model.mean, model.std)
        images = images if alter is None else alter(images, batch, model)
        products = precision or jax.config.jax_default_matmul_precision
        with jax.default_matmul_precision(products):
            outputs = model.apply(variables, images, keys=keys)
        label = batch["label"]
        if teacher is not None:
            label = jnp.argmax(teacher(*of_teacher, images), axis=-1)
        each = _score(outputs.logits, label, valid)
        sums = parallel.total(_sums(each, batch["mask"]))
        return sums, each if measure is None else each | measure(outputs, batch)

    return parallel.pmap(step, program="evaluation")


def program_step(
    program: Callable[[np.ndarray], jax.Array], valid: tuple[int, ...] | None = None
):
    """A step as from `model_step`, but for a function of pixels: (anything, batch).

    program: uint8 [m, S, S, 3] -> logits, on one device, with its weights inside
    valid: as for `model_step`
    """

    @jax.jit
    def score(logits, label, mask):
        each = _score(logits, label, valid)
        sums = _sums(each, mask)
        return jax.tree.map(lambda x: x[None], (sums, each))  # the axis of devices

    def step(_, batch):
        logits = program(batch["image"][0])
        return score(logits, batch["label"][0], batch["mask"][0])

    return step


def evaluate(step, variables, batches: Iterable[Mapping[str, Any]]) -> EvalResult:
    """Accuracy and loss of one pass over all images.

    The rate includes reading and decoding; the first batch, which may compile, is left
    out. A set of one batch goes through the model once more: its rate is the model's,
    without reading.

    step: from `model_step` or `program_step`
    variables: of the model, replicated
    batches: as `loader.EvalBatches` gives them
    """
    return evaluate_each(step, [variables], batches)[0]


def evaluate_each(
    step, models: list, batches: Iterable[Mapping[str, Any]]
) -> list[EvalResult]:
    """`evaluate` of several sets of variables in one pass: every image is read once."""
    passes = [_Pass() for _ in models]
    began = None
    seen = 0.0
    pending = None

    def add(places, results):
        for one, result in zip(passes, results, strict=True):
            one.add(places, *result)

    for batch in batches:
        results = [step(variables, batch) for variables in models]
        if pending is not None:  # one behind: the device works while the host reads
            add(*pending)
            if began is None:
                began = time.perf_counter()
                seen = passes[0].totals["images"]
        places = {name: np.array(batch[name]) for name in ("index", "mask")}
        pending = places, results
    add(*pending)
    if began is None:
        began = time.perf_counter()
        jax.block_until_ready([step(variables, batch) for variables in models])
    seconds = time.perf_counter() - began
    return [one.result(seen, seconds) for one in passes]


def evaluate_program(
    model,
    variables,
    program,
    batches: Callable[..., Iterable[Mapping[str, Any]]],
    seed: int = 0,
    valid: tuple[int, ...] | None = None,
) -> tuple[dict[str, dict[str, Any]], statistics.Estimate]:
    """Accuracy of a program that `inference.optimize` made, and that of its model.

    model, variables: evaluated in float32 at highest precision with XLA's attention
    program: the same model's for pixels, on the first device
    batches: makes those of a split, of `batch_size` and `placement`
    seed: of reducers that draw
    valid: as for `model_step`
    Returns the figures of both by name, "reference" and "optimized", and the paired
    difference of acc1, in points, with its interval, which the program's have, too.
    """
    exact = model.clone(dtype=jnp.dtype("float32"), backend="xla")
    step = model_step(exact, seed, precision="highest", valid=valid)
    before = evaluate(step, parallel.replicate(variables), batches())
    parts = batches(batch_size=program.batch_size, placement=Placement())
    after = evaluate(program_step(program, valid), None, parts)
    change = statistics.paired_difference(after.each["right"], before.each["right"])
    fast = program.model
    names = ("difference", "difference_low", "difference_high")
    optimized = {"dtype": fast.dtype.name, "gelu": fast.arch.gelu}
    result = {
        "reference": before.figures | {"dtype": "float32", "gelu": model.arch.gelu},
        "optimized": after.figures | optimized | dict(zip(names, change, strict=True)),
    }
    return result, change


class _Pass:
    """Totals, and the arrays of each image, of one model."""

    def __init__(self):
        self.totals = dict.fromkeys(("loss", "acc1", "acc5", "images"), 0.0)
        self.parts = []

    def add(self, places, sums, each):
        sums = parallel.unreplicate(sums)
        self.totals = {k: total + float(sums[k]) for k, total in self.totals.items()}
        real = np.ravel(places["mask"]) > 0
        part = {"index": np.ravel(places["index"])[real]}
        for name, values in parallel.local(each).items():
            part[name] = values.reshape(-1, *values.shape[2:])[real]
        self.parts.append(part)

    def result(self, seen, seconds):
        joined = {k: np.concatenate([p[k] for p in self.parts]) for k in self.parts[0]}
        order = np.argsort(joined["index"], kind="stable")
        images = max(self.totals["images"], 1.0)
        return EvalResult(
            acc1=100 * self.totals["acc1"] / images,
            acc5=100 * self.totals["acc5"] / images,
            loss=self.totals["loss"] / images,
            images=int(self.totals["images"]),
            throughput=(self.totals["images"] - seen) / seconds,
            each={name: values[order] for name, values in joined.items()},
        )
