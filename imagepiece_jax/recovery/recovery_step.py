"""The recipe and the compiled programs of a recovery.

The student is a reduced model; the teacher is its dense variant, on the same images.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree, Shaped, UInt8

from imagepiece_jax.common import parallel
from imagepiece_jax.common.checks import check_options, option
from imagepiece_jax.data.normalize import NormalizedImages, PixelImages, normalize
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.recovery.recovery_loss import ComparedOutputs, OutputComparison

Variables = Mapping[str, Any]

# "norms": norm scales and biases. "biases": "norms", all other biases, and the layer
# scale factors.
TRAINED = ("all", "biases", "norms")
MIN_PARAM_SIZE = 0.05  # for root mean squares near 0
DEFAULT_STEPS = 400  # steps per cost, if neither steps nor minutes are given
REFERENCE_BATCH_SIZE = 16
REFERENCE_LR = 0.002  # highest learning rate at REFERENCE_BATCH_SIZE


@dataclasses.dataclass(frozen=True)
class RecoveryRecipe:
    """Settings of a recovery."""

    parameters: str = option("biases", TRAINED)  # the trained parameters
    steps: int = option(DEFAULT_STEPS, least=1)
    batch_size: int = option(REFERENCE_BATCH_SIZE, least=1)
    seed: int = option(0, least=0)

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def lr(self) -> float:
        """Highest learning rate, as a share of a parameter's size."""
        return REFERENCE_LR * math.sqrt(self.batch_size / REFERENCE_BATCH_SIZE)


class FitState(NamedTuple):
    """The values that a training step changes."""

    trained_params: PyTree  # from `trained_part`
    moments: PyTree  # the optimizer's


def step_size(name: str, param: Float[Array, "..."]) -> Float[Array, ""]:
    """Size of a parameter's steps: its root mean square, as in Adafactor and LAMB.

    Kernels with n inputs take steps smaller by sqrt(n), as in muP.
    """
    param_size = jnp.maximum(jnp.sqrt(jnp.mean(param**2)), MIN_PARAM_SIZE)
    if name != "kernel":
        return param_size
    # An output sums n products: a step adds up n-fold, the kernel's own values only
    # sqrt(n)-fold.
    num_inputs = param.size // param.shape[-1]  # a kernel is [*inputs, outputs]
    return param_size / math.sqrt(num_inputs)


class DenseTeacher:
    """The dense model on all devices."""

    def __init__(self, dense: Pretrained) -> None:
        self.model = dense.model
        self.comparison = OutputComparison(dense)
        self.variables = parallel.replicate(dense.variables)

        def compute_outputs(variables, pixels):
            images = self.normalize_pixels(pixels)
            return self.comparison.compute_outputs(self.model, variables, images)

        self._program = parallel.pmap(compute_outputs, program_name="dense model")

    def pair_outputs(self, batches: Iterable[dict[str, np.ndarray]]) -> list[tuple]:
        """Pair all `read_image_batches` with the teacher's outputs."""
        pairs = []
        for batch in batches:
            pairs.append((batch, self._program(self.variables, batch["image"])))
        return pairs

    def normalize_pixels(self, pixels: PixelImages) -> NormalizedImages:
        """Normalize pixels for both models."""
        return normalize(pixels, self.model.config.mean, self.model.config.std)


class StudentFit:
    """The compiled programs of a recovery, and its state."""

    def __init__(
        self, student: Pretrained, recipe: RecoveryRecipe, teacher: DenseTeacher
    ) -> None:
        self.student = student
        self.recipe = recipe
        self.model = student.model
        self.teacher = teacher
        self.comparison = teacher.comparison
        # Without an earlier recovery both models share one copy of the variables.
        self.variables = teacher.variables
        if student.recovered_variant:
            self.variables = parallel.replicate(student.variables)
        self.adam = optax.scale_by_adam()
        self.reset_state()
        # Argument 0 is the state, whose memory the next state takes over.
        self._step_program = parallel.pmap(
            self._train_step, donate_argnums=(0,), program_name="recovery step"
        )
        self._metrics_program = parallel.pmap(
            self._measure_batch, program_name="reduced model"
        )

    def reset_state(self) -> None:
        """Reset the state to the first step's."""
        params = self.student.variables["params"]
        trained_params = trained_part(params, self.recipe.parameters)
        # One program makes all zeros: without `jit` every shape compiles its own.
        moments = jax.jit(self.adam.init)(jax.device_put(trained_params))
        self.state = parallel.replicate(FitState(trained_params, moments))

    def fetch_trained_params(self) -> PyTree:
        """Copy the trained parameters to the host."""
        return parallel.unreplicate(self.state.trained_params)

    def train_step(
        self, pixels: UInt8[np.ndarray, "devices batch height width 3"], lr: float
    ) -> Float[Array, " devices"]:
        """Take a training step; return its loss, without waiting for it.

        lr: learning rate, multiplied by a parameter's `step_size`
        """
        self.state, loss = self._step_program(
            self.state,
            self.variables,
            self.teacher.variables,
            pixels,
            parallel.replicate(np.float32(lr)),
        )
        return loss

    def measure_held_out(
        self, held_out_pairs: list[tuple], is_dense: bool = False
    ) -> dict[str, Shaped[np.ndarray, " images"]]:
        """Measure held-out images: `OutputComparison.measure_images`, and "index".

        held_out_pairs: the images, from `DenseTeacher.pair_outputs`
        is_dense: whether the student has the dense model's values
        """
        variables = self.variables
        trained_params = self.state.trained_params
        if is_dense:
            variables = self.teacher.variables
            trained_params = trained_part(variables["params"], self.recipe.parameters)
        rows_by_name = {}
        for batch, targets in held_out_pairs:
            batch_metrics = self._metrics_program(
                trained_params, variables, batch["image"], targets
            )
            batch_arrays = parallel.local_rows(batch_metrics)
            batch_arrays["index"] = batch["index"]
            is_image = batch["mask"]  # [devices, m]; False: padding, or unreadable
            for name, array in batch_arrays.items():
                rows_by_name.setdefault(name, []).append(array[is_image])
        metrics = {name: np.concatenate(rows) for name, rows in rows_by_name.items()}
        # Sorted, so that the order does not depend on the number of devices.
        order = np.argsort(metrics["index"])
        return {name: array[order] for name, array in metrics.items()}

    def _train_step(self, state, variables, teacher_variables, pixels, lr):
        """Take a training step on one device: (next FitState, loss)."""
        images = self.teacher.normalize_pixels(pixels)
        targets = self.comparison.compute_outputs(
            self.teacher.model, teacher_variables, images
        )

        def loss_of_params(trained_params):
            outputs = self.compute_student_outputs(variables, trained_params, images)
            return self.comparison.mean_loss(outputs, targets)

        device_results = jax.value_and_grad(loss_of_params)(state.trained_params)
        loss, gradient = jax.lax.pmean(device_results, parallel.DEVICE_AXIS)
        directions, moments = self.adam.update(gradient, state.moments)

        def make_update(path, param, direction):
            name = path[-1].key  # such as "kernel"
            return -lr * step_size(name, param) * direction

        updates = jax.tree.map_with_path(make_update, state.trained_params, directions)
        new_params = optax.apply_updates(state.trained_params, updates)
        return FitState(new_params, moments), loss

    def _measure_batch(self, trained_params, variables, pixels, targets):
        images = self.teacher.normalize_pixels(pixels)
        outputs = self.compute_student_outputs(variables, trained_params, images)
        return self.comparison.measure_images(outputs, targets)

    def compute_student_outputs(
        self, variables: Variables, trained_params: Any, images: NormalizedImages
    ) -> ComparedOutputs:
        """Compute the student's outputs, with `trained_params` in its variables."""
        params = with_trained(variables["params"], trained_params)
        variables = {**variables, "params": params}
        return self.comparison.compute_outputs(self.model, variables, images)


def trained_part(params: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """Replace frozen parameters by None; `kind` is in TRAINED."""
    # JAX treats None as an empty tree, so gradients, moments and exchanges between
    # devices exist for trained parameters only.
    if kind == "all":
        return params
    is_norm = "scale" in params  # no other layer has one
    trained_params: dict[str, Any] = {}
    for name, subtree in params.items():
        is_bias_or_factor = name in ("bias", "gamma")  # gamma: layer scale factors
        if isinstance(subtree, Mapping):
            trained_params[name] = trained_part(subtree, kind)
        elif is_norm or (kind == "biases" and is_bias_or_factor):
            trained_params[name] = subtree
        else:
            trained_params[name] = None
    return trained_params


def with_trained(params: Mapping[str, Any], trained_params: Any) -> Mapping[str, Any]:
    """Put the parameters of a `trained_part`, None if frozen, back into `params`."""
    if trained_params is None:
        return params
    if not isinstance(params, Mapping):
        return trained_params
    return {name: with_trained(params[name], trained_params[name]) for name in params}
