"""The evaluation pass: accuracy and loss, over a split and per image."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

from imagepiece_jax.common import parallel, xla_options
from imagepiece_jax.common.rng import Purpose, sample_keys
from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.vit import Outputs, ViT

# From a model's replicated variables and a batch: sums over all devices by metric, and
# per-image arrays [devices, images, ..] by name.
EvalStep = Callable[[PyTree, Mapping[str, Any]], tuple[dict, dict]]


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
    def metrics(self) -> dict[str, float]:
        """Metrics over the split, by name."""
        return {k: value for k, value in vars(self).items() if k != "per_image"}


def format_metrics(metrics: Mapping[str, float], *more_texts: str) -> str:
    """Format an EvalResult's metrics, and `more_texts`, as one line."""
    texts = [
        f"acc1 {metrics['acc1']:.2f} %",
        f"acc5 {metrics['acc5']:.2f} %",
        f"loss {metrics['loss']:.4f}",
        f"images {metrics['images']}",
        *more_texts,
        f"throughput {metrics['throughput']:.1f} img/s",
    ]
    return "  ".join(texts)


def correct_at(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], k: int
) -> Bool[Array, " batch"]:
    """Whether the label is among the k largest logits."""
    chex.assert_rank([logits, labels], [2, 1])
    label_logit = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    # Of two equal logits the lower class counts as larger, so a network with equal
    # logits is right for k classes only. A label with a NaN logit is never right.
    classes = jnp.arange(logits.shape[-1], dtype=labels.dtype)
    is_lower = classes[None, :] < labels[:, None]
    wins_tie = (logits == label_logit) & is_lower
    num_ahead = jnp.sum((logits > label_logit) | wins_tie, axis=-1)
    return (num_ahead < k) & ~jnp.isnan(label_logit[:, 0])


def _measure_images(
    logits: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    classes: Collection[int] | None = None,
) -> dict[str, Shaped[Array, " batch"]]:
    """Metrics of every image; classes: labels to choose among, or None for all."""
    if classes is not None:
        is_choice = np.isin(np.arange(logits.shape[-1]), [*classes])
        logits = jnp.where(is_choice, logits, -jnp.inf)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return {
        "right": correct_at(logits, labels, 1),
        "right5": correct_at(logits, labels, min(5, logits.shape[-1])),
        "loss": loss,
    }


def _sum_metrics(
    per_image: Mapping[str, Shaped[Array, " batch"]], mask: Shaped[Array, " batch"]
) -> dict[str, Float[Array, ""]]:
    """Sums over one device's images, by metric."""
    summands = {
        "acc1": per_image["right"],
        "acc5": per_image["right5"],
        "loss": per_image["loss"],
        "images": jnp.ones_like(mask),
    }
    sums = {}
    for name, summand in summands.items():
        # A masked image may give anything, even NaN: select, do not multiply.
        sums[name] = jnp.sum(jnp.where(mask > 0, summand.astype(jnp.float32), 0))
    return sums


def model_step(
    model: ViT,
    seed: int = 0,
    precision: str | None = None,
    measure: Callable[[Outputs, Mapping[str, Array]], dict[str, Array]] | None = None,
    alter: Callable[[Array, Mapping[str, Array], ViT], Array] | None = None,
    classes: Collection[int] | None = None,
) -> parallel.MappedFunction:
    """Make the evaluation of a batch, an EvalStep that compiles at its first call.

    A device's batch has image uint8 [m, S, S, 3], and label, mask and index (in the
    set) [m].

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

    def evaluate_batch(
        variables: PyTree, batch: Mapping[str, Array]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        outputs = compute_outputs(model, variables, batch, seed, precision, alter)
        per_image = _measure_images(outputs.logits, batch["label"], classes)
        sums = parallel.sum_over_devices(_sum_metrics(per_image, batch["mask"]))
        if measure is not None:
            per_image |= measure(outputs, batch)
        return sums, per_image

    return parallel.pmap(evaluate_batch, program_name="evaluation")


def compute_outputs(
    model: ViT,
    variables: PyTree,
    batch: Mapping[str, Array],
    seed: int,
    precision: str | None,
    alter: Callable[[Array, Mapping[str, Array], ViT], Array] | None,
) -> Outputs:
    """Compute a model's outputs for a batch; arguments as for `model_step`."""
    keys = {"reducer": sample_keys(seed, 0, batch["index"], Purpose.REDUCER_EVAL)}
    images = normalize(batch["image"], model.config.mean, model.config.std)
    if alter is not None:
        images = alter(images, batch, model)
    set_precision = contextlib.nullcontext()
    if precision is not None:
        set_precision = jax.default_matmul_precision(precision)
    with set_precision:
        return model.apply(variables, images, keys=keys)


def program_step(program: Callable[[np.ndarray], Array]) -> EvalStep:
    """`model_step` for a program uint8 [m, S, S, 3] -> logits; it ignores variables."""

    @jax.jit
    def measure_logits(
        logits: Array, labels: Array, mask: Array
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        per_image = _measure_images(logits, labels)
        sums = _sum_metrics(per_image, mask)
        return jax.tree.map(lambda x: x[None], (sums, per_image))  # a device axis

    def evaluate_batch(_: PyTree, batch: Mapping[str, Any]) -> tuple[dict, dict]:
        logits = program(batch["image"][0])  # on one device, with its weights inside
        labels_and_mask = jax.device_put((batch["label"][0], batch["mask"][0]))
        return measure_logits(logits, *labels_and_mask)

    return evaluate_batch


def evaluate_model(
    step: EvalStep, variables: PyTree, batches: Iterable[Mapping[str, Any]]
) -> EvalResult:
    """Accuracy and loss of one pass over all images.

    step: from `model_step` or `program_step`
    variables: replicated
    batches: read from `Batches` without a seed
    Raises InputError if outputs are not finite.
    """
    (result,) = evaluate_models(step, [variables], batches)
    outputs = result.per_image.get("outputs", result.per_image["loss"])
    if not np.isfinite(outputs).all():
        raise InputError("the model's outputs are not finite for all images")
    return result


def evaluate_weights(
    model: ViT,
    variables: PyTree,
    batches: Iterable[Mapping[str, Any]],
    precision: str | None = None,
) -> EvalResult:
    """`evaluate_model` for a model's variables, on all devices."""
    step = model_step(model, precision=precision)
    return evaluate_model(step, parallel.replicate(variables), batches)


def evaluate_program(
    program: Callable[[np.ndarray], Array], batches: Iterable[Mapping[str, Any]]
) -> EvalResult:
    """`evaluate_model` for a program, as for `program_step`."""
    return evaluate_model(program_step(program), None, batches)


def evaluate_models(
    step: EvalStep,
    model_variables: Sequence[PyTree],
    batches: Iterable[Mapping[str, Any]],
) -> list[EvalResult]:
    """Evaluate several sets of variables in one pass that reads every image once.

    model_variables: replicated; step and batches as for `evaluate_model`
    """
    passes = [_ModelPass() for _ in model_variables]
    start_time = time.perf_counter()
    untimed_images = 0.0
    pending = []  # the positions and results of at most one batch

    def add_pending() -> None:
        while pending:
            positions, results = pending.pop()
            for model_pass, result in zip(passes, results, strict=True):
                model_pass.add_batch(positions, *result)

    for number, batch in enumerate(batches):
        if number == 1:  # wait for the first batch, then start the clock
            add_pending()
            start_time = time.perf_counter()
            untimed_images = passes[0].totals["images"]
        results = [step(variables, batch) for variables in model_variables]
        add_pending()  # one behind: the device works while the host reads
        positions = {name: np.array(batch[name]) for name in ("index", "mask")}
        pending.append((positions, results))
    add_pending()
    seconds = time.perf_counter() - start_time
    return [model_pass.make_result(untimed_images, seconds) for model_pass in passes]


class _ModelPass:
    """Sums and per-image arrays of one model so far."""

    def __init__(self) -> None:
        self.totals = dict.fromkeys(("loss", "acc1", "acc5", "images"), 0.0)
        self.batch_arrays: dict[str, list[np.ndarray]] = {}

    def add_batch(
        self, positions: Mapping[str, np.ndarray], sums: PyTree, per_image: PyTree
    ) -> None:
        """Add a batch's results; positions: its index and mask, by name."""
        sums = parallel.unreplicate(sums)
        for name in self.totals:
            self.totals[name] += float(sums[name])
        is_real = np.ravel(positions["mask"]) > 0
        arrays = {"index": positions["index"], **parallel.local_rows(per_image)}
        for name, array in arrays.items():
            rows = array.reshape(-1, *array.shape[2:])[is_real]
            self.batch_arrays.setdefault(name, []).append(rows)

    def make_result(self, untimed_images: float, seconds: float) -> EvalResult:
        """EvalResult; `seconds` were measured after the first `untimed_images`."""
        per_image = {
            name: np.concatenate(arrays) for name, arrays in self.batch_arrays.items()
        }
        order = np.argsort(per_image["index"], kind="stable")
        num_images = max(self.totals["images"], 1.0)
        return EvalResult(
            acc1=100 * self.totals["acc1"] / num_images,
            acc5=100 * self.totals["acc5"] / num_images,
            loss=self.totals["loss"] / num_images,
            images=int(self.totals["images"]),
            throughput=(self.totals["images"] - untimed_images) / seconds,
            per_image={name: rows[order] for name, rows in per_image.items()},
        )
