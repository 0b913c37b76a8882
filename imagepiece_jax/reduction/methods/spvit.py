"""SPViT: heads vote which tokens stay, the others travel in a package (ECCV 2022).

Trained as DynamicViT is; every step leaves one more token, the package: the mean of
what it drops, weighted by keep probability. Packages are never dropped (Kong et al.).
"""

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from imagepiece_jax.errors import InputError
from imagepiece_jax.reduction import token_selector
from imagepiece_jax.reduction.methods import dynamicvit
from imagepiece_jax.reduction.methods.method import Group, Method
from imagepiece_jax.reduction.ops import count_before, rank
from imagepiece_jax.reduction.schedule import (
    Step,
    check_blocks,
    check_choice,
    check_rate,
    check_switch,
    check_weight,
)
from imagepiece_jax.reduction.tokens import Assignment, Masking

NORMS = ("none", "score", "count")


class Selector(nn.Module):
    """Keep what the heads score highest and pack the rest into one token, at the end.

    In a masked plan a random draw is masked and the package appended. share_heads: one
    score network for all heads; package_norm: see `package_weights`.
    """

    share_heads: bool = True
    package_norm: str = "score"
    needs: ClassVar[frozenset[str]] = frozenset({"rng"})

    @nn.compact
    def __call__(self, taps, counts, train=False):
        batch, n, dim = taps.x.shape
        heads = taps.x.reshape(batch, n, taps.num_heads, dim // taps.num_heads)
        scores = self._scores(heads, taps.mask)  # [B, n, H, 2]
        vote = self._votes(heads)[..., None]
        probability = jnp.sum(vote * jnp.exp(scores), axis=2)[..., 0]
        is_package = (jnp.arange(n) >= n - (counts.stage - 1))[None]
        if counts.n_out < counts.n_in:
            last = counts.n_out - 1
            keep = rank(jnp.where(is_package, jnp.inf, probability)) < last
            weight = package_weights(probability, ~keep, self.package_norm)
            return Assignment(
                dest=jnp.where(keep, count_before(keep), last),
                weight=jnp.where(keep, 1.0, weight),
                n_out=counts.n_out,
                mean=False,
                merged=1,
            )
        scores = jnp.sum(vote * scores, axis=2)
        keep = token_selector.draw_mask(scores, taps.mask, taps.rng)
        keep = jnp.where(is_package, 1.0, keep)
        before = jnp.ones_like(keep) if taps.mask is None else taps.mask
        weight = package_weights(probability, before - keep, self.package_norm)
        package = jnp.einsum(
            "bn,bnd->bd", weight, taps.x.astype(jnp.float32), precision="highest"
        )
        return Masking(keep, append=package)

    def _scores(self, heads, mask):
        """Each head's log probabilities, from its own features. -> [B, n, H, 2]."""
        if self.share_heads:
            return token_selector.KeepScores(name="scores")(heads, mask)
        each = [
            token_selector.KeepScores(name=f"scores_{h}")(heads[:, :, h], mask)
            for h in range(heads.shape[2])
        ]
        return jnp.stack(each, axis=2)

    def _votes(self, heads):
        """How much each head counts, from the means of all. -> [B, n, H], sum 1."""
        count = heads.shape[2]
        dense = functools.partial(nn.Dense, kernel_init=token_selector.INIT)
        z = jnp.mean(heads, axis=-1, dtype=jnp.float32)
        z = dense(max(1, count // 2), name="vote_in")(z)
        z = dense(count, name="vote_out")(nn.gelu(z, approximate=False))
        # sigmoid(z) / sum sigmoid(z), also where all of them underflow
        return jax.nn.softmax(jax.nn.log_sigmoid(z))

    @nn.nowrap
    def extra_macs(self, n_in, embed_dim, num_heads):
        votes = 2 * num_heads * max(1, num_heads // 2)
        scores = token_selector.keep_macs(n_in, embed_dim // num_heads)
        return n_in * votes + num_heads * scores


def package_weights(probability, dropped, norm):
    """Weight of each token in the package of those `dropped`. [B, n] twice -> [B, n].

    norm: "none" sums them by keep probability, "score" makes that a weighted mean,
    "count" is the plain mean. Nothing dropped: all zero.
    """
    dropped = dropped.astype(jnp.float32)
    weight = dropped if norm == "count" else probability * dropped
    if norm == "none":
        return weight
    total = jnp.sum(weight, axis=1, keepdims=True)
    # Not eps alone where nothing is dropped: the gradient would be a million.
    return weight / jnp.where(total > 0, total + token_selector.EPS, 1.0)


def recipe(
    depth,
    keep_rates=(0.617, 0.369, 0.137),
    blocks=(3, 6, 9),
    package_norm="score",
    share_heads=True,
):
    """Before `blocks` keep these shares of the first tokens, and one package a step."""
    blocks = check_blocks("blocks", blocks)
    if not isinstance(keep_rates, tuple | list):
        raise InputError(
            f"config.reduction.keep_rates is {keep_rates!r}; allowed is a rate for "
            "each of config.reduction.blocks, such as (0.617, 0.369, 0.137)"
        )
    if len(keep_rates) != len(blocks):
        raise InputError(
            f"config.reduction.keep_rates has {len(keep_rates)} numbers; allowed is "
            f"one for each of config.reduction.blocks, {len(blocks)}"
        )
    keep_rates = [check_rate("keep_rates", rate) for rate in keep_rates]
    if [*blocks, *keep_rates] != sorted(blocks) + sorted(keep_rates, reverse=True):
        raise InputError(
            f"config.reduction.keep_rates is {tuple(keep_rates)} at blocks {blocks}; "
            "allowed are rising blocks with rates, all of the first tokens, that do not"
        )
    check_choice("package_norm", package_norm, NORMS)
    check_switch("share_heads", share_heads)
    selector = Selector(share_heads, package_norm)
    return tuple(
        Step(
            block,
            selector,
            "keep_initial_package",
            rate,
            "pre",
            when_masked=1,
        )
        for block, rate in zip(blocks, keep_rates, strict=True)
    )


def loss(
    outputs, teacher_outputs, plan, ratio_weight=2.0, kl_weight=0.5, token_weight=0.5
):
    """DynamicViT's, but the live share of the whole batch is held, not each image's.

    An image may so keep more than another. The batch is this device's; packages do not
    count. `plan` is that of masked training.
    """
    masks = [result.keep for result in outputs.results]
    patches = masks[0].shape[1] if masks else 0
    shares = [jnp.mean(mask[:, :patches]) for mask in masks]
    targets = [layer.step.amount for layer in plan if layer.counts]
    return dynamicvit.weighted(
        outputs, teacher_outputs, shares, targets, ratio_weight, kl_weight, token_weight
    )


def param_groups(path, backbone_lr=0.01, frozen_epochs=5.0):
    """As DynamicViT's, but the backbone's rate is flat until the schedule is below it.

    It is `backbone_lr` times the peak, or the schedule's rate where that is less.
    """
    backbone_lr = check_rate("backbone_lr", backbone_lr)
    frozen_epochs = check_weight("frozen_epochs", frozen_epochs)
    return dynamicvit.group_of(path, _backbone(backbone_lr, frozen_epochs))


@functools.cache
def _backbone(share, frozen_epochs):
    return Group(lambda rate, peak: jnp.minimum(share * peak, rate), frozen_epochs)


METHOD = Method(recipe=recipe, loss=loss, param_groups=param_groups, needs_teacher=True)
