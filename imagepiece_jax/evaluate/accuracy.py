"""How accurate is a model on a whole split? Every image once, padding masked out."""

import functools
import time

import chex
import jax
import jax.numpy as jnp
import optax

from imagepiece_jax.common import parallel, xla_options
from imagepiece_jax.common.rng import Purpose, sample_keys
from imagepiece_jax.data.normalize import normalize


def correct_at(logits, labels, k):
    """Is the label among the k largest logits? [B, C], int [B] -> bool [B].

    Of equal logits the lower class counts as larger, so a network that says the same
    for every class is right for k classes only. A label whose logit is NaN is never
    found.
    """
    chex.assert_rank([logits, labels], [2, 1])
    mine = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    lower = jnp.arange(logits.shape[-1])[None, :] < labels[:, None]
    ahead = jnp.sum((logits > mine) | ((logits == mine) & lower), axis=-1)
    return (ahead < k) & ~jnp.isnan(mine[:, 0])


def eval_step(variables, batch, *, model, seed=0, precision=None):
    """Sums over all devices of loss, acc1, acc5 and images, and who was right [m].

    batch: image uint8 [m, S, S, 3], label, mask and index (of the image in its set) [m]
    of this device. The loss is the cross-entropy with the hard label. A reducer that
    draws does so by (seed, index): the same in every pass. `precision` "highest" keeps
    all of float32 in products, of which GPUs otherwise round the factors (TF32).
    """
    keys = {"reducer": sample_keys(seed, 0, batch["index"], Purpose.REDUCER_EVAL)}
    images = normalize(batch["image"], model.mean, model.std)
    asked = precision or jax.config.jax_default_matmul_precision
    with jax.default_matmul_precision(asked):
        logits = model.apply(variables, images, keys=keys).logits
    sums, right = _score(logits, batch)
    return parallel.total(sums), right


def _score(logits, batch):
    """Sums over one device's batch, and who was right [m]."""
    label, mask = batch["label"], batch["mask"]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    sums = {
        "loss": losses,
        "acc1": correct_at(logits, label, 1),
        "acc5": correct_at(logits, label, min(5, logits.shape[-1])),
        "images": jnp.ones_like(mask),
    }
    # A masked image may give anything, NaN too: select, do not multiply.
    sums = {
        name: jnp.sum(jnp.where(mask > 0, value.astype(jnp.float32), 0))
        for name, value in sums.items()
    }
    return sums, correct_at(logits, label, 1) & (mask > 0)


def compiled(model, seed=0, precision=None):
    """`eval_step` of `model` on all devices: (replicated variables, batch)."""
    xla_options.check_dtype(parallel.local_devices()[0].platform, model.dtype.name)
    step = functools.partial(eval_step, model=model, seed=seed, precision=precision)
    return parallel.pmap(step, model=True)


def of_program(program):
    """A step as from `compiled`, of a function of pixels: (anything, batch).

    `program`: uint8 [m, S, S, 3] -> logits, on one device; it has its own weights.
    """
    score = jax.jit(jax.vmap(_score))

    def step(_, batch):
        logits = program(batch["image"][0])[None]  # the leading axis of devices
        return score(logits, {name: batch[name] for name in ("label", "mask")})

    return step


def evaluate(step, variables, batches, right=None):
    """One pass: dict of acc1, acc5 (percent), loss, images and throughput (img/s).

    `step` is from `compiled` or `of_program`, `variables` replicated. The rate includes
    reading and decoding; the first batch, which may compile, is left out. A set of one
    batch goes through the model once more: its rate is that of the model alone.
    `right` [images of the set] bool, where given, becomes True for those of this
    process that were classified right.
    """

    def noted(batch):
        sums, correct = step(variables, batch)
        if right is not None:
            right[batch["index"][parallel.local(correct)]] = True
        return (sums,)

    return _one_pass(noted, batches, 1)[0]


def evaluate_each(step, models, batches):
    """`evaluate` of several sets of variables in one pass: every image is read once."""

    def each(batch):
        return [step(variables, batch)[0] for variables in models]

    return _one_pass(each, batches, len(models))


def _one_pass(sums_of, batches, count):
    """Results of `count` models, whose sums over a batch `sums_of(batch)` gives."""
    totals = [dict.fromkeys(("loss", "acc1", "acc5", "images"), 0.0)] * count
    began, seen, pending = None, 0.0, None

    def added(totals, sums):
        sums = parallel.unreplicate(sums)
        return {name: total + float(sums[name]) for name, total in totals.items()}

    for batch in batches:
        sums = sums_of(batch)
        if pending is not None:  # one behind: the device works while the host reads
            totals = list(map(added, totals, pending))
            if began is None:
                began, seen = time.perf_counter(), totals[0]["images"]
        pending = sums
    totals = list(map(added, totals, pending))
    if began is None:
        began = time.perf_counter()
        jax.block_until_ready(sums_of(batch))
    seconds = time.perf_counter() - began
    return [_result(total, (total["images"] - seen) / seconds) for total in totals]


def _result(totals, throughput):
    images = max(totals["images"], 1.0)
    return {
        "acc1": 100 * totals["acc1"] / images,
        "acc5": 100 * totals["acc5"] / images,
        "loss": totals["loss"] / images,
        "images": int(totals["images"]),
        "throughput": throughput,
    }
