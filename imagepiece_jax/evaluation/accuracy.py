"""The evaluation pass: accuracy and loss, over a split and per image."""

import dataclasses
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from imagepiece_jax.common import parallel, statistics, xla_options
from imagepiece_jax.common.placement import Placement
from imagepiece_jax.common.rng import Purpose, sample_keys
from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class EvalResult:
    """One pass over a split."""

    acc1: float  # percent
    acc5: float  # percent
    loss: float  # mean cross-entropy
    images: int
    # images a second, with reading and decoding, but without the first of several
    # batches, which may compile
    throughput: float
    # Arrays with a row for every image read by this process, in the split's order:
    # index (in the split), right (the label has the highest logit), right5 (the label
    # is among the five highest), loss, and further measures of the step.
    per_image: Mapping[str, np.ndarray] = dataclasses.field(repr=False)

    @property
    def figures(self) -> dict[str, float]:
        """Numbers over the split, by name."""
        return {k: value for k, value in vars(self).items() if k != "per_image"}


def format_metrics(figures: Mapping[str, float], *more: str) -> str:
    """Format an EvalResult's figures, and `more` texts, as one line."""
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
    """Whether the label is among the k largest logits. [B, C], int [B] -> bool [B]."""
    chex.assert_rank([logits, labels], [2, 1])
    label_logit = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    # Of two equal logits the lower class counts as larger, so a network with equal
    # logits is right for k classes only. A label with a NaN logit is never right.
    classes = jnp.arange(logits.shape[-1], dtype=labels.dtype)
    lower = classes[None, :] < labels[:, None]
    tied = (logits == label_logit) & lower
    ahead = jnp.sum((logits > label_logit) | tied, axis=-1)
    return (ahead < k) & ~jnp.isnan(label_logit[:, 0])


def _image_metrics(logits, label, classes=None):
    """Per-image arrays [m] by name; classes: possible answers, or None for all."""
    if classes is not None:
        answers = np.isin(np.arange(logits.shape[-1]), classes)
        logits = jnp.where(answers, logits, -jnp.inf)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return {
        "right": correct_at(logits, label, 1),
        "right5": correct_at(logits, label, min(5, logits.shape[-1])),
        "loss": loss,
    }


def _metric_sums(per_image, mask):
    """Sums over one device's images, by figure name."""
    values = {
        "acc1": per_image["right"],
        "acc5": per_image["right5"],
        "loss": per_image["loss"],
        "images": jnp.ones_like(mask),
    }
    sums = {}
    for name, value in values.items():
        # A masked image may give anything, even NaN: select, do not multiply.
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
    """Compile the evaluation of a batch: step(replicated variables, batch).

    A device's batch has image uint8 [m, S, S, 3], and label, mask and index (in the
    set) [m]. The step returns sums over all devices and per-image arrays [m, ..], both
    by name.

    seed: for reducers with random numbers, which are equal in every pass
    precision: "highest" keeps all bits of float32 factors, which GPUs otherwise round
        (TF32)
    measure: (outputs, batch) -> further per-image arrays by name; outputs then include
        tokens
    alter: (images, batch, model) -> the normalized images for the model
    classes: labels to choose among, as in published figures of ImageNet-A, ImageNet-R
        and imagenette; None: all
    Raises InputError for a model dtype that the platform cannot compute in.
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
        per_image = _image_metrics(outputs.logits, batch["label"], classes)
        sums = parallel.sum_over_devices(_metric_sums(per_image, batch["mask"]))
        if measure is not None:
            per_image |= measure(outputs, batch)
        return sums, per_image

    return parallel.pmap(step, program="evaluation")


def program_step(program: Callable[[np.ndarray], jax.Array]):
    """`model_step` for a program uint8 [m, S, S, 3] -> logits; it ignores variables."""

    @jax.jit
    def score(logits, label, mask):
        per_image = _image_metrics(logits, label)
        sums = _metric_sums(per_image, mask)
        return jax.tree.map(lambda x: x[None], (sums, per_image))  # a device axis

    def step(_, batch):
        logits = program(batch["image"][0])  # on one device, with its weights inside
        label_and_mask = jax.device_put((batch["label"][0], batch["mask"][0]))
        return score(logits, *label_and_mask)

    return step


def evaluate_model(step, variables, batches: Iterable[Mapping[str, Any]]) -> EvalResult:
    """Accuracy and loss of one pass over all images.

    step: from `model_step` or `program_step`
    variables: replicated
    batches: read from `Batches` without a seed
    Raises InputError if outputs are not finite.
    """
    (result,) = evaluate_models(step, [variables], batches)
    values = result.per_image.get("outputs", result.per_image["loss"])
    if not np.isfinite(values).all():
        raise InputError("the model's outputs are not finite for all images")
    return result


def evaluate_models(
    step, models: list, batches: Iterable[Mapping[str, Any]]
) -> list[EvalResult]:
    """Evaluate several sets of variables in one pass that reads every image once.

    models: replicated variables per model; step and batches as for `evaluate`
    """
    passes = [_ModelPass() for _ in models]
    began = time.perf_counter()
    images_before = 0.0
    pending = None

    def add(positions, results):
        for of_model, result in zip(passes, results, strict=True):
            of_model.add(positions, *result)

    for number, batch in enumerate(batches):
        if number == 1:  # wait for the first batch, then start the clock
            add(*pending)
            pending = None
            began = time.perf_counter()
            images_before = passes[0].totals["images"]
        results = [step(variables, batch) for variables in models]
        if pending is not None:  # one behind: the device works while the host reads
            add(*pending)
        positions = {name: np.array(batch[name]) for name in ("index", "mask")}
        pending = positions, results
    add(*pending)
    seconds = time.perf_counter() - began
    return [of_model.result(images_before, seconds) for of_model in passes]


def compare_program(
    model,
    variables,
    program,
    batches: Callable[..., Iterable[Mapping[str, Any]]],
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Compare the accuracy of an `inference.optimize` program with its model's.

    model, variables: the reference, evaluated in float32 with XLA's attention
    program: takes uint8 pixels, on the first device
    batches: function that makes a split's batches, from `batch_size` and `placement`
    Returns {"reference", "optimized"}: figures of both, and under "optimized" the
        difference of acc1 in points with its interval.
    """
    exact = model.with_execution(dtype=jnp.dtype("float32"), attention_impl="xla")
    step = model_step(exact, seed, precision="highest")
    before = evaluate_model(step, parallel.replicate(variables), batches())
    program_batches = batches(batch_size=program.batch_size, placement=Placement())
    after = evaluate_model(program_step(program), None, program_batches)
    change = statistics.paired_difference(
        after.per_image["right"], before.per_image["right"]
    )

    def described(result, variant, reductions):
        return {
            **result.figures,
            "dtype": variant.execution.dtype.name,
            "gelu": variant.config.arch.gelu,
            "sizes": variant.execution.size_encoding,
            "reductions": reductions,
        }

    optimized = described(after, program.model, program.reductions)
    optimized["difference"], *interval = change
    optimized["difference_low"], optimized["difference_high"] = interval
    return {"reference": described(before, exact, "exact"), "optimized": optimized}


class _ModelPass:
    """Sums and per-image arrays of one model so far."""

    def __init__(self):
        self.totals = dict.fromkeys(("loss", "acc1", "acc5", "images"), 0.0)
        self.parts = []

    def add(self, positions, sums, per_image):
        """Add a batch's results; places: its index and mask, by name."""
        sums = parallel.unreplicate(sums)
        for name in self.totals:
            self.totals[name] += float(sums[name])
        real = np.ravel(positions["mask"]) > 0
        part = {"index": np.ravel(positions["index"])[real]}
        for name, values in parallel.local_rows(per_image).items():
            part[name] = values.reshape(-1, *values.shape[2:])[real]
        self.parts.append(part)

    def result(self, images_before, seconds):
        """EvalResult; `images_before` images were done before the timed `seconds`."""
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
            per_image={name: values[order] for name, values in joined.items()},
        )
