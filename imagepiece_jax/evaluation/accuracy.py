"""The evaluation pass: accuracy and loss, over a split and per image."""

import dataclasses
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from imagepiece_jax.common import parallel, xla_options
from imagepiece_jax.common.rng import Purpose, sample_keys
from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.vit import Outputs, ViT

# From a model's replicated variables and a batch: sums over all devices by metric, and
# per-image arrays [devices, images, ..] by name.
EvalStep = Callable[[PyTree, Mapping[str, Any]], tuple[dict, dict]]
AlterImages = Callable[[Array, Mapping[str, Array], ViT], Array]
MeasureOutputs = Callable[[Outputs, Mapping[str, Array]], dict[str, Array]]


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
    image_metrics: Mapping[str, np.ndarray] = dataclasses.field(repr=False)

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics over the split, by name."""
        fields = vars(self).items()
        return {name: value for name, value in fields if name != "image_metrics"}


def format_metrics(metrics: Mapping[str, float], *more_entries: str) -> str:
    """Format an EvalResult's metrics, and `more_entries`, as one line."""
    metric_texts = [f"{name} {metrics[name]:.2f} %" for name in ("acc1", "acc5")]
    metric_texts += [f"loss {metrics['loss']:.4f}", f"images {metrics['images']}"]
    metric_texts += [*more_entries, f"throughput {metrics['throughput']:.1f} img/s"]
    return "  ".join(metric_texts)


def correct_at(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], k: int
) -> Bool[Array, " batch"]:
    """Whether the label is among the k largest logits."""
    chex.assert_rank([logits, labels], [2, 1])
    label_logit = jnp.take_along_axis(logits, labels[:, None], axis=-1)  # [batch, 1]
    # Of two equal logits the lower class counts as larger, so a network with equal
    # logits is right for k classes only. A label with a NaN logit is never right.
    classes = jnp.arange(logits.shape[-1], dtype=labels.dtype)
    is_lower = classes[None, :] < labels[:, None]
    wins_tie = (logits == label_logit) & is_lower
    num_ahead = jnp.sum((logits > label_logit) | wins_tie, axis=-1)
    return (num_ahead < k) & ~jnp.isnan(label_logit[:, 0])


def _compute_image_metrics(logits, labels, classes=None):
    """Metrics of every image; classes: labels to choose among, or None for all.

    logits: [images, classes]
    """
    if classes is not None:
        # A list, because np.isin takes no set.
        is_choice = np.isin(np.arange(logits.shape[-1]), [*classes])
        logits = jnp.where(is_choice, logits, -jnp.inf)
    return {
        "loss": optax.softmax_cross_entropy_with_integer_labels(logits, labels),
        "right": correct_at(logits, labels, 1),
        "right5": correct_at(logits, labels, min(5, logits.shape[-1])),  # or all
    }


def _sum_metrics(image_metrics, mask):
    """Sums over one device's images, by metric; mask: [images], 0 for no image."""
    sums = {"images": jnp.sum(jnp.where(mask > 0, 1.0, 0.0))}
    for name, measure in (("acc1", "right"), ("acc5", "right5"), ("loss", "loss")):
        # A masked image may give anything, even NaN: select, do not multiply.
        image_values = image_metrics[measure].astype(jnp.float32)
        sums[name] = jnp.sum(jnp.where(mask > 0, image_values, 0))
    return sums


def make_eval_step(
    model: ViT,
    seed: int = 0,
    measure_outputs: MeasureOutputs | None = None,
    alter_images: AlterImages | None = None,
    classes: Collection[int] | None = None,
) -> parallel.MappedFunction:
    """Make the evaluation of a batch, an EvalStep that compiles at its first call.

    A device's batch has image uint8 [m, S, S, 3] (m images), and label, mask and index
    (in the set) [m].

    seed: for reducers with random numbers, which are those of step 0 in every pass
    measure_outputs: (outputs, batch) -> further per-image arrays by name; outputs then
        include tokens
    alter_images: (images, batch, model) -> the normalized images for the model
    classes: labels to choose among, as in published figures of ImageNet-A, ImageNet-R
        and imagenette; None: all
    Raises InputError for a model dtype that the platform cannot compute in.
    """
    xla_options.check_dtype(model.execution.dtype.name)
    model = model.with_execution(head_only=measure_outputs is None)

    def evaluate_batch(variables, batch):
        keys = {"reducer": sample_keys(seed, 0, batch["index"], Purpose.REDUCER_EVAL)}
        images = normalize(batch["image"], model.config.mean, model.config.std)
        if alter_images is not None:
            images = alter_images(images, batch, model)
        outputs = model.apply(variables, images, keys=keys)
        image_metrics = _compute_image_metrics(outputs.logits, batch["label"], classes)
        device_sums = _sum_metrics(image_metrics, batch["mask"])
        metric_sums = jax.lax.psum(device_sums, parallel.DEVICE_AXIS)
        if measure_outputs is not None:
            image_metrics |= measure_outputs(outputs, batch)
        return metric_sums, image_metrics

    return parallel.pmap(evaluate_batch, program_name="evaluation")


def make_program_step(program: Callable[[np.ndarray], Array]) -> EvalStep:
    """Make an EvalStep of a program uint8 [m, S, S, 3] -> logits, without variables."""

    @jax.jit
    def measure_logits(logits, labels, mask):
        image_metrics = _compute_image_metrics(logits, labels)
        results = _sum_metrics(image_metrics, mask), image_metrics
        return jax.tree.map(lambda array: array[None], results)  # a device axis

    def evaluate_batch(_, batch):
        logits = program(batch["image"][0])  # [0]: of [devices, ..], here one device
        # JAX's transfer guard refuses copies that are not explicit.
        labels_and_mask = jax.device_put((batch["label"][0], batch["mask"][0]))
        return measure_logits(logits, *labels_and_mask)

    return evaluate_batch


def evaluate_model(step: EvalStep, variables: PyTree, batches: Iterable) -> EvalResult:
    """Accuracy and loss of one pass over all images.

    step: from `make_eval_step` or `make_program_step`
    variables: replicated
    batches: read from `Batches` without a seed
    Raises InputError if outputs are not finite.
    """
    (result,) = evaluate_models(step, [variables], batches)
    # Outputs, if the step gives them: images without labels have no loss.
    checked_numbers = result.image_metrics.get("outputs", result.image_metrics["loss"])
    if not np.isfinite(checked_numbers).all():
        raise InputError("the model's outputs are not finite for all images")
    return result


def evaluate_models(
    step: EvalStep, model_variables: Sequence[PyTree], batches: Iterable[Mapping]
) -> list[EvalResult]:
    """Evaluate several sets of variables in one pass that reads every image once.

    model_variables: replicated; step and batches as for `evaluate_model`
    """
    model_passes = [_ModelPass() for _ in model_variables]
    start_time = time.perf_counter()
    num_untimed_images = 0.0
    last_batch = None  # (copies, batch_results) of the batch that may still compute

    def add_last_batch():
        if last_batch is not None:
            index_and_mask, results = last_batch
            for model_pass, result in zip(model_passes, results, strict=True):
                model_pass.add_batch(index_and_mask, *result)

    for batch_number, batch in enumerate(batches):
        if batch_number == 1:  # wait for the first batch, then start the clock
            add_last_batch()
            last_batch = None
            start_time = time.perf_counter()
            num_untimed_images = model_passes[0].metric_sums["images"]  # of any model
        batch_results = [step(variables, batch) for variables in model_variables]
        add_last_batch()  # one behind: the device works while the host reads
        # Copies, because the batches' owner may fill the arrays again.
        copies = {name: np.array(batch[name]) for name in ("index", "mask")}
        last_batch = copies, batch_results
    add_last_batch()
    seconds = time.perf_counter() - start_time
    timing = num_untimed_images, seconds
    return [model_pass.make_result(*timing) for model_pass in model_passes]


class _ModelPass:
    """Sums and per-image arrays of one model so far."""

    def __init__(self):
        self.metric_sums = dict.fromkeys(("loss", "acc1", "acc5", "images"), 0.0)
        self.batch_arrays = {}

    def add_batch(self, index_and_mask, metric_sums, image_metrics):
        """Add a batch's results; arrays are [devices, a device's images, ..]."""
        host_sums = parallel.unreplicate(metric_sums)
        for name in self.metric_sums:
            self.metric_sums[name] += float(host_sums[name])
        is_real = np.ravel(index_and_mask["mask"]) > 0  # 0: padding, or unreadable
        arrays = parallel.local_rows(image_metrics) | {"index": index_and_mask["index"]}
        for name, array in arrays.items():
            rows = array.reshape(-1, *array.shape[2:])[is_real]
            self.batch_arrays.setdefault(name, []).append(rows)

    def make_result(self, num_untimed_images, seconds):
        """EvalResult; `seconds` were measured after the first `num_untimed_images`."""
        image_metrics = {
            name: np.concatenate(arrays) for name, arrays in self.batch_arrays.items()
        }
        order = np.argsort(image_metrics["index"], kind="stable")
        num_images = max(self.metric_sums["images"], 1.0)  # no image: 0, not NaN
        return EvalResult(
            acc1=100 * self.metric_sums["acc1"] / num_images,
            acc5=100 * self.metric_sums["acc5"] / num_images,
            loss=self.metric_sums["loss"] / num_images,
            images=int(self.metric_sums["images"]),
            throughput=(self.metric_sums["images"] - num_untimed_images) / seconds,
            image_metrics={name: rows[order] for name, rows in image_metrics.items()},
        )
