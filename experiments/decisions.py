"""Whether bfloat16 changes classes by what is decided, and what float32 decisions cost.

A model in bfloat16 beside itself in float32, with every reduction of --sweep. Scores
are computed in float32 already, but of rounded queries and keys. So they are also read
unrounded, from products of bfloat16 with float32 results ("unrounded") and from
products of float32 ("float32"). And the bfloat16 model is made to merge and drop what
the float32 model does ("replayed"): what changes then is not decided, but computed.
"""

import contextlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import log_softmax

from experiments import render
from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.evaluate import statistics
from imagepiece_jax.models.attention import Attention
from imagepiece_jax.models.block import Reduction
from imagepiece_jax.reduction import settings, tokens

KINDS = ("bfloat16", "unrounded", "float32", "replayed")


def decisions(context):
    """float32 and every kind of bfloat16, of the dense model and --sweep."""
    rows = []
    for reduction in (settings.DENSE, *context.reductions):
        exact = _measured(context, reduction, None)
        rows.append([f"`{settings.label(reduction)}`", "none: float32", *_cells(exact)])
        kinds = KINDS[:1] if reduction == settings.DENSE else KINDS
        for kind in kinds:
            found = _measured(context, reduction, kind)
            rows.append(["", kind, *_cells(found, exact)])
    head = ["reduction", "decisions in bfloat16", "acc1, %", "other class than float32"]
    render.page(
        context,
        "decisions",
        "bfloat16 and what is decided in it",
        render.table([*head, "KL to float32"], rows),
        render.note(context),
    )


def _cells(found, exact=None):
    accuracy = statistics.accuracy(found["right"])
    if exact is None:
        return [statistics.format_estimate(accuracy), "", ""]
    changed = statistics.accuracy(found["class"] != exact["class"])
    ours, theirs = found["log"], exact["log"]
    divergence = np.sum(np.exp(theirs) * (theirs - ours), axis=1)
    return [
        statistics.format_estimate(accuracy),
        statistics.format_estimate(changed),
        statistics.format_estimate(statistics.student(divergence), 4),
    ]


def _measured(context, reduction, kind):
    """{"right", "class": [images], "log": [images, classes] log-probabilities}."""
    vit = context.pretrained.pretrained(reduction)
    exact = vit.model.clone(dtype=jnp.dtype("float32"), kernels=None, head_only=True)
    rough = exact.clone(dtype=jnp.dtype("bfloat16"))

    @jax.jit
    def logits(variables, images):
        images, made = normalize(images, exact.mean, exact.std), []
        with jax.default_matmul_precision("highest"):
            if kind in (None, "replayed"):
                with patched(keep=made):
                    out = exact.apply(variables, images).logits
            if kind is not None:
                with patched(replay=made, scores=kind):
                    out = rough.apply(variables, images).logits
        return out.astype(jnp.float32)

    found, labels = [], []
    for batch in context.images.batches():
        (live,) = np.nonzero(batch["mask"].reshape(-1) > 0)
        images = batch["image"].reshape(-1, *batch["image"].shape[-3:])
        found.append(np.asarray(logits(vit.variables, images))[live])
        labels.append(batch["label"].reshape(-1)[live])
    log = log_softmax(np.concatenate(found).astype(np.float64), axis=1)
    best = log.argmax(axis=1)
    return {"right": best == np.concatenate(labels), "class": best, "log": log}


@contextlib.contextmanager
def patched(keep=None, replay=(), scores=None):
    """Models that keep what they reduce, or do what is in `replay`, or score so."""
    replay, reduce, score = list(replay), Reduction.__call__, Attention.scores

    def reduced(self, state, scores, train=False):
        if replay:
            result, taps = replay.pop(0)
            return tokens.apply(state, result), (result, taps)
        state, done = reduce(self, state, scores, train)
        if keep is not None:
            keep.append(done)
        return state, done

    def scored(self, heads, reads, state):
        if scores in ("unrounded", "float32"):
            x = heads.plain["input"]
            query, key = (_projected(each, x, scores) for each in (self.q, self.k))
            shape = (*x.shape[:2], self.num_heads, -1)
            query, key = query.reshape(shape), key.reshape(shape)
            plain = heads.plain | {"query": query, "key": key}
            heads = heads._replace(query=query, key=key, plain=plain)
        return score(self, heads, reads, state)

    with (
        mock.patch.object(Reduction, "__call__", reduced),
        mock.patch.object(Attention, "scores", scored),
    ):
        yield


def _projected(dense, x, kind):
    """`dense` of x in float32, for models without rotary positions."""
    parameters = dense.variables["params"]
    dtype = x.dtype if kind == "unrounded" else jnp.float32
    kernel = parameters["kernel"].astype(dtype)
    out = jnp.einsum(
        "bnd,de->bne", x.astype(dtype), kernel, preferred_element_type=jnp.float32
    )
    if "bias" in parameters:
        out += parameters["bias"][None, None]
    return out
