"""The evaluation pass: accuracy and loss, over a split and by image."""

import dataclasses
import time
from collections.abc import Callable, Collection, Iterable, Mapping
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
    # split: index (the image's place there), right (the label is the highest class),
    # right5 (it is among the five highest), loss, and further measures of the step.
    each: Mapping[str, np.ndarray] = dataclasses.field(repr=False)

    @property
    def figures(self) -> dict[str, float]:
        """The numbers over the split, by name."""
        return {k: value for k, value in vars(self).items() if k != "each"}


def line(figures: Mapping[str, float], *more: str) -> str:
    """The figures of an EvalResult, and `more` texts, as one line."""
    parts = [
        f"acc1 {figures['acc1']:.2f} %",
        f"acc5 {figures['acc5']:.2f} %",
        f"loss {figures['loss']:.4f}",
        f"images {figures['images']}",
        *more,
        f"throughput {figures['throughput']:.1f} img/s",
    ]
    return "  ".join(parts)


def correct_at(logits: jax.Array, labels: jax.Array, k: int) -> jax.Array:
    """Whether the label is among the k largest logits. [B, C], int [B] -> bool [B].

    Of two equal logits the lower class counts as larger, so a network with equal logits
    is right for k classes only. A label with a logit of NaN is never right.
    """
    chex.assert_rank([logits, labels], [2, 1])
    label_logit = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    classes = jnp.arange(logits.shape[-1], dtype=labels.dtype)
    lower = classes[None, :] < labels[:, None]
    tied = (logits == label_logit) & lower
    ahead = jnp.sum((logits > label_logit) | tied, axis=-1)
    return (ahead < k) & ~jnp.isnan(label_logit[:, 0])


def _score(logits, label, classes=None):
    """Arrays [m] by name: whether each image is right, and its loss.

    classes: the possible answers; None: all classes
    """
    if classes is not None:
        answers = np.isin(np.arange(logits.shape[-1]), classes)
        logits = jnp.where(answers, logits, -jnp.inf)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return {
        "right": correct_at(logits, label, 1),
        "right5": correct_at(logits, label, min(5, logits.shape[-1])),
        "loss": loss,
    }


def _sums(each, mask):
    """Sums over the images of one device's batch, by name of the figure."""
    values = {
        "acc1": each["right"],
        "acc5": each["right5"],
        "loss": each["loss"],
        "images": jnp.ones_like(mask),
    }
    sums = {}
    for name, value in values.items():
        # A masked image may give anything, NaN too: select, do not multiply.
        real = jnp.where(mask > 0, value.astype(jnp.float32), 0)
        sums[name] = jnp.sum(real)
    return sums


def model_step(
    model,
    seed: int = 0,
    precision: str | None = None,
    measure: Callable[..., dict[str, jax.Array]] | None = None,
    alter: Callable[..., jax.Array] | None = None,
    classes: Collection[int] | None = None,
):
    """A compiled function that evaluates a batch: step(replicated variables, batch).

    A device's batch has image uint8 [m, S, S, 3], and label, mask and index (the place
    of the image in its set) [m]. The step returns sums over all devices, and arrays
    [m, ..] with a row for each image, both by name.

    model: with a `measure` it returns its tokens too, else only the head's outputs
    seed: seed of reducers that draw random numbers, which are the same in every pass
    precision: "highest" keeps all bits of float32 factors, which GPUs otherwise round
        (TF32)
    measure: (outputs, batch) -> further arrays with a row for each image, by name
    alter: (images, batch, model) -> the normalized images that the model sees
    classes: the labels to choose among, for the published figures of ImageNet-A,
        ImageNet-R and imagenette; None: all
    Raises InputError for a dtype of the model that the platform cannot compute in.
    """
    xla_options.check_dtype(model.execution.dtype.name)
    model = model.with_execution(head_only=measure is None)

    def step(variables, batch):
        keys = {"reducer": sample_keys(seed, 0, batch["index"], Purpose.REDUCER_EVAL)}
        images = normalize(batch["image"], model.config.mean, model.config.std)
        if alter is not None:
            images = alter(images, batch, model)
        products = precision or jax.config.jax_default_matmul_precision
        with jax.default_matmul_precision(products):
            outputs = model.apply(variables, images, keys=keys)
        each = _score(outputs.logits, batch["label"], classes)
        sums = parallel.total(_sums(each, batch["mask"]))
        if measure is not None:
            each |= measure(outputs, batch)
        return sums, each

    return parallel.pmap(step, program="evaluation")


def program_step(program: Callable[[np.ndarray], jax.Array]):
    """The `model_step` of a compiled program; it ignores variables.

    program: uint8 [m, S, S, 3] -> logits, on one device, with its weights inside
    """

    @jax.jit
    def score(logits, label, mask):
        each = _score(logits, label)
        sums = _sums(each, mask)
        return jax.tree.map(lambda x: x[None], (sums, each))  # the axis of devices

    def step(_, batch):
        logits = program(batch["image"][0])
        given = jax.device_put((batch["label"][0], batch["mask"][0]))
        return score(logits, *given)

    return step


def evaluate(step, variables, batches: Iterable[Mapping[str, Any]]) -> EvalResult:
    """Accuracy and loss of one pass over all images.

    The throughput includes reading and decoding, but not the first batch, which may
    compile, if there are several.

    step: a step of `model_step` or `program_step`
    variables: the model's variables, replicated
    batches: `Batches` without a seed, read
    """
    return evaluate_each(step, [variables], batches)[0]


def evaluate_each(
    step, models: list, batches: Iterable[Mapping[str, Any]]
) -> list[EvalResult]:
    """Evaluate several sets of variables in one pass, which reads every image once.

    models: replicated variables of each; step and batches are as for `evaluate`
    """
    passes = [_Pass() for _ in models]
    began = time.perf_counter()
    images_before = 0.0
    pending = None

    def add(places, results):
        for of_model, result in zip(passes, results, strict=True):
            of_model.add(places, *result)

    for number, batch in enumerate(batches):
        if number == 1:  # after the first is done, before the second starts
            add(*pending)
            pending = None
            began = time.perf_counter()
            images_before = passes[0].totals["images"]
        results = [step(variables, batch) for variables in models]
        if pending is not None:  # one behind: the device works while the host reads
            add(*pending)
        places = {name: np.array(batch[name]) for name in ("index", "mask")}
        pending = places, results
    add(*pending)
    seconds = time.perf_counter() - began
    return [of_model.result(images_before, seconds) for of_model in passes]


def evaluate_program(
    model,
    variables,
    program,
    batches: Callable[..., Iterable[Mapping[str, Any]]],
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Accuracy of a program of `inference.optimize` beside that of its model.

    model, variables: the reference, evaluated in float32 with XLA's attention
    program: the optimized model, which takes pixels, on the first device
    batches: makes the batches of a split, of `batch_size` and `placement`
    seed: as for `model_step`
    Returns {"reference", "optimized"}: figures of both; the optimized ones have the
        difference of acc1 in points, with its interval.
    """
    exact = model.with_execution(dtype=jnp.dtype("float32"), attention_impl="xla")
    step = model_step(exact, seed, precision="highest")
    before = evaluate(step, parallel.replicate(variables), batches())
    parts = batches(batch_size=program.batch_size, placement=Placement())
    after = evaluate(program_step(program), None, parts)
    change = statistics.paired_difference(after.each["right"], before.each["right"])

    def described(result, form, reductions):
        return {
            **result.figures,
            "dtype": form.execution.dtype.name,
            "gelu": form.config.arch.gelu,
            "sizes": form.execution.size_encoding,
            "reductions": reductions,
        }

    optimized = described(after, program.model, program.reductions)
    optimized["difference"], *interval = change
    optimized["difference_low"], optimized["difference_high"] = interval
    return {"reference": described(before, exact, "exact"), "optimized": optimized}


class _Pass:
    """What is known of one model so far: sums, and arrays with a row for each image."""

    def __init__(self):
        self.totals = dict.fromkeys(("loss", "acc1", "acc5", "images"), 0.0)
        self.parts = []

    def add(self, places, sums, each):
        """Add the results of a batch; places: its index and mask, by name."""
        sums = parallel.unreplicate(sums)
        for name in self.totals:
            self.totals[name] += float(sums[name])
        real = np.ravel(places["mask"]) > 0
        part = {"index": np.ravel(places["index"])[real]}
        for name, values in parallel.local(each).items():
            part[name] = values.reshape(-1, *values.shape[2:])[real]
        self.parts.append(part)

    def result(self, images_before, seconds):
        """The EvalResult; `images_before` images were done before the `seconds`."""
        joined = {}
        for name in self.parts[0]:
            joined[name] = np.concatenate([part[name] for part in self.parts])
        order = np.argsort(joined["index"], kind="stable")
        images = max(self.totals["images"], 1.0)
        return EvalResult(
            acc1=100 * self.totals["acc1"] / images,
            acc5=100 * self.totals["acc5"] / images,
            loss=self.totals["loss"] / images,
            images=int(self.totals["images"]),
            throughput=(self.totals["images"] - images_before) / seconds,
            each={name: values[order] for name, values in joined.items()},
        )
