"""What does a model do with each image? One pass, some numbers an image."""

import jax.numpy as jnp
import numpy as np
import optax

from imagepiece_jax.common import parallel
from imagepiece_jax.common.rng import Purpose, sample_keys
from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.evaluate.accuracy import correct_at


def compiled(model, measure, alter=None, seed=0):
    """A step for `each_image`: (replicated variables, batch) -> arrays [devices, m].

    measure(outputs, batch) -> {name: [m, ...]} of one device's images; alter(images,
    batch, model) changes the normalized images [m, S, S, 3] before the model sees them.
    A reducer that draws does so by (seed, index): the same in every pass.
    """

    def step(variables, batch):
        keys = {"reducer": sample_keys(seed, 0, batch["index"], Purpose.REDUCER_EVAL)}
        images = normalize(batch["image"], model.mean, model.std)
        images = images if alter is None else alter(images, batch, model)
        return measure(model.apply(variables, images, keys=keys), batch)

    return parallel.pmap(step)


def each_image(step, variables, batches):
    """{name: [images, ...]} in the order of the set, and "index", their places in it.

    `step` is from `compiled`, `variables` replicated. Images that cannot be read, and
    the padding of the last batch, are left out.
    """
    found, pending = [], None
    for batch in batches:
        kept = {name: np.ravel(batch[name]) for name in ("index", "mask")}
        arrays = step(variables, batch)
        if pending is not None:  # one behind: the device works while the host reads
            found.append(_real(*pending))
        pending = kept, arrays
    found.append(_real(*pending))
    joined = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
    order = np.argsort(joined["index"], kind="stable")
    return {name: values[order] for name, values in joined.items()}


def _real(kept, arrays):
    """Arrays [devices, m, ...] -> [images, ...] of the images that count."""
    real = kept["mask"] > 0
    flat = {"index": kept["index"][real]}
    for name, values in arrays.items():
        values = np.asarray(values)
        flat[name] = values.reshape(-1, *values.shape[2:])[real]
    return flat


def answers(outputs, batch):
    """Of each image: is the label first, among five, its loss and its probability."""
    logits, label = outputs.logits, batch["label"]
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return {
        "right": correct_at(logits, label, 1),
        "right5": correct_at(logits, label, min(5, logits.shape[-1])),
        "loss": loss,
        "probability": jnp.exp(-loss),
    }
