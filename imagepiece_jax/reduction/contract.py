"""The contract of methods and reducers, checked: every token has a place.

A reduction that breaks it raises nothing by itself: it merges other tokens than it
reports. Steps (`check_steps`), what they ask for (`check_plan`) and return
(`check_form`) is checked wherever a model is made or traced; values (`check`) only
where a program has run.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from imagepiece_jax.common.rng import root_key
from imagepiece_jax.errors import InputError, inside
from imagepiece_jax.reduction.layer_plan import SITES, Step
from imagepiece_jax.reduction.reducers import METRICS, SCORES
from imagepiece_jax.reduction.state import DROPPED, Assignment, Masking, Mixing, Taps

# Taps that are there where a reducer's `needs` names them.
ON_REQUEST = ("metric", "key", "cls_attn", "attn_columns", "shift", "probe", "rng")
COMPARED = (*METRICS, "input")  # what the tap "metric" may be


def check_steps(steps, method):
    """Check what a method's `steps` returned, and return it.

    Raises InputError, which names the method and the step, for anything but such steps.
    """
    place = f"{type(method).__name__}.steps"
    if not isinstance(steps, list | tuple):
        allowed = "a list of Steps"
        problem = f"returns a {type(steps).__name__}"
        raise InputError(allowed=allowed, problem=problem, place=place)
    for number, step in enumerate(steps):
        with inside(place=f"{place}, step {number},"):
            _check_step(step)
    return steps


def _check_step(step):
    """InputError for anything but a Step of a known site."""
    if not isinstance(step, Step):
        problem = f"is a {type(step).__name__}"
        raise InputError(allowed="Step(block, reducer, rule)", problem=problem)
    if step.site not in SITES:
        allowed = ", ".join(map(repr, SITES))
        raise InputError(allowed=allowed, problem=f"has the site {step.site!r}")


def check_plan(plan, arch, grid):
    """Check that attention, model and grid have what the steps of a plan ask for.

    arch: an `Architecture`
    grid: (height, width) of the patches
    Raises InputError, which names the block, for the first step that asks for more.
    """
    lacking = lacking_scores(arch)
    for block, layer in enumerate(plan):
        if layer.step is None:
            continue
        reducer = layer.step.reducer
        site = layer.step.site
        place = place_of(reducer, block)
        unknown = sorted(reducer.needs - {*ON_REQUEST})
        if unknown:
            allowed = ", ".join(ON_REQUEST)
            raise InputError(
                allowed=allowed, problem=f"needs {unknown[0]!r}", place=place
            )
        metric = reducer.metric
        if "metric" in reducer.needs and metric not in COMPARED:
            allowed = ", ".join(map(repr, COMPARED))
            problem = f"compares {metric!r}"
            raise InputError(allowed=allowed, problem=problem, place=place)
        for score in lacking:
            if SCORES[score] in reducer.needs:
                _refuse_score(score, reducer, block, lacking)
        if site == "pre" and reducer.reads:
            problem = f"reads at block {block} the attention of the block before it"
            if block == 0:
                raise InputError(value=block, allowed="blocks from 1", problem=problem)
            before = plan[block - 1]
            if before.counts and before.step.site != "pre":
                problem = f"{problem}, in which tokens change"
                raise InputError(allowed="other blocks", problem=problem)
        if site == "attention" and "value" in reducer.reads:
            allowed = "'key', 'query', 'token'"
            problem = f"compares values at block {block} before attention has them"
            raise InputError(allowed=allowed, problem=problem)
        if site == "attention" and "shift" in reducer.reads:
            problem = f"reads at block {block} how far attention will move tokens"
            raise InputError(allowed="other taps", problem=problem)
        if layer.counts:
            reducer.check_fits(grid, layer.counts)
            grid = None


def lacking_scores(arch):
    """The scores that a model of `arch` lacks: {score: the part that it would need}."""
    lacking = {}
    if not arch.class_token:
        lacking["class"] = "class token"
    if arch.pool != "map":
        lacking["probe"] = "attention-pooling head"
    return lacking


def _refuse_score(score, reducer, block, lacking):
    """InputError for a score of which the model lacks a part."""
    part = lacking[score]
    field = ""
    allowed = f"a model that has a {part}"
    if hasattr(reducer, "score"):
        field = "score"
        allowed = ", ".join(name for name in SCORES if name not in lacking)
    problem = f"ranks tokens by {score!r} at block {block}, but the model has no {part}"
    raise InputError(field, score, allowed, problem=problem)


def check_form(result, counts):
    """Check shapes and types of a reducer's result, which may be traced arrays.

    result, counts: what a reducer returned, and the `layer_plan.Counts` that it got
    Raises InputError where the two contradict each other.
    """
    n_in = counts.n_in
    n_out = counts.n_out
    if isinstance(result, Assignment):
        if result.n_out != n_out:
            raise InputError("n_out", result.n_out, str(n_out))
        if n_out > n_in:
            allowed = "as many at most, or a Masking that appends one"
            problem = f"makes {n_out} tokens of {n_in}"
            raise InputError(allowed=allowed, problem=problem)
        _check_integers("dest", result.dest)
        _check_shape("dest", result.dest, n_in)
        _check_shape("weight", result.weight, n_in)
        _check_shape("attn_size", result.attn_size, n_in)
        if result.index is not None:
            _check_index_form(result.index, n_out)
    elif isinstance(result, Mixing):
        _check_shape("matrix", result.matrix, n_out, n_in)
        _check_shape("attn_size", result.attn_size, n_out)
    elif isinstance(result, Masking):
        _check_shape("keep", result.keep, n_in)
        tokens = n_in if result.append is None else n_in + 1
        if tokens != n_out:
            allowed = str(n_out)
            raise InputError("keep", tokens, allowed, problem=f"leaves {tokens} tokens")
    else:
        problem = f"returns {type(result).__name__}"
        raise InputError(allowed="Assignment, Mixing, Masking", problem=problem)


def _check_index_form(index, n_out):
    """Check that a SlotIndex has whole numbers, and pairs of one length."""
    absorbed = index.absorbed.shape[-1]
    groups = index.groups.shape[-1]
    sizes = {
        "keep": n_out,
        "absorbed": absorbed,
        "target": absorbed,
        "groups": groups,
        "group_keep": groups,
    }
    for name, size in sizes.items():
        array = getattr(index, name)
        _check_integers(f"index.{name}", array)
        _check_shape(f"index.{name}", array, size)


def _check_integers(name, array):
    """InputError unless an array has whole numbers."""
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise InputError(name, array.dtype, "integers", problem=f"is {array.dtype}")


def check(result, counts):
    """Check the values of a reducer's result: not to be called in `jax.jit`.

    Every token has a slot or is dropped, every slot has a token, `index` is the map of
    `dest`, weights are finite. Arguments are those of `check_form`.

    Raises InputError, which names image, slot and token, where that does not hold.
    """
    check_form(result, counts)
    result = jax.tree.map(np.asarray, result)
    if isinstance(result, Assignment):
        _check_slots(result.dest, result.n_out)
        if result.index is not None:
            _check_index(result.dest, result.index)
    for name in ("weight", "attn_size", "matrix", "keep"):
        values = getattr(result, name, None)
        if values is not None:
            _check_finite(name, values)


def _check_finite(name, values):
    """InputError for the first number that is NaN or infinite."""
    finite = np.isfinite(values.astype(np.float32))
    for image, *index in _first(~finite):
        value = values[image, *index]
        _refuse(image, f"{name}{index}", f"is {value}", "finite numbers")


def check_results(plan, results):
    """`check` what each step of `plan` decided.

    results: one for each step that changes something, such as `Outputs.results`
    Raises InputError, which names the step, for one that breaks the contract.
    """
    steps = [(block, layer) for block, layer in enumerate(plan) if layer.counts]
    for (block, layer), result in zip(steps, results, strict=True):
        with inside(place=place_of(layer.step.reducer, block)):
            check(result, layer.counts)


def try_reducers(plan, grid, embed_dim, num_heads, num_prefix=1):
    """Check the first step of each kind of reducer on random tokens, without a model.

    A kind takes about a second. `check_results` checks all steps, in the outputs of a
    model.

    grid: (height, width) of the patches
    Raises InputError, which names the step, for one that breaks the contract.
    """
    first = {}
    for block, layer in enumerate(plan):
        if layer.counts:
            first.setdefault(type(layer.step.reducer), (block, layer))
    for block, layer in first.values():
        reducer = layer.step.reducer
        counts = layer.counts
        taps = random_taps(reducer, counts.n_in, embed_dim, num_heads)
        taps = taps.replace(num_prefix=num_prefix)
        if counts.n_in == grid[0] * grid[1]:  # no token has left yet
            taps = taps.replace(grid=grid)
        with inside(place=place_of(reducer, block)):
            result = _run(reducer, taps, counts)
            check(result, counts)


def place_of(reducer, block):
    """The step at a block, for errors."""
    return f"reduction at block {block}, {type(reducer).__name__}"


def random_taps(reducer, n, embed_dim, num_heads):
    """Taps of two images of `n` random tokens."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, n, embed_dim)), jnp.float32)
    size = jnp.asarray(rng.integers(1, 4, size=(2, n)), jnp.float32)
    scores = jax.nn.softmax(x[..., 0])
    key = x[..., : embed_dim // num_heads]
    of_token = reducer.metric in ("token", "input")
    return Taps(
        x=x,
        size=size,
        attn_size=size,
        metric=x if of_token else key,
        key=key,
        cls_attn=scores,
        attn_columns=scores,
        shift=scores,
        probe=scores,
        rng=jax.random.split(root_key(0), 2),
        num_heads=num_heads,
    )


@functools.partial(jax.jit, static_argnums=(0, 2))
def _run(reducer, taps, counts):
    """Result of a reducer; one that learns has fresh parameters."""
    if isinstance(reducer, nn.Module):
        return reducer.init_with_output(root_key(0), taps, counts)[0]
    return reducer(taps, counts)


def _check_shape(name, array, *sizes):
    """InputError unless an array is [B, *sizes], or None."""
    if array is not None and array.shape[1:] != sizes:
        listed = ", ".join(map(str, sizes))
        allowed = f"[B, {listed}]"
        raise InputError(name, array.shape, allowed, problem=f"has shape {array.shape}")


def _refuse(image, which, problem, allowed=""):
    """Raise InputError about a token, a slot or an entry of an image."""
    raise InputError(f"image {image}, {which}", allowed=allowed, problem=problem)


def _first(wrong):
    """Where the first True of an array is: a list of one index, or an empty one."""
    return [index.tolist() for index in np.argwhere(wrong)[:1]]


def _check_slots(dest, n_out):
    """InputError for a slot that is out of range, or empty."""
    outside = (dest < 0) | (dest >= n_out)
    for image, token in _first(outside & (dest != DROPPED)):
        allowed = f"0 to {n_out - 1}, and {DROPPED} for dropped tokens"
        _refuse(image, f"token {token}", f"goes to slot {dest[image, token]}", allowed)
    slots = np.arange(n_out)[None, :, None]
    filled = (dest[:, None, :] == slots).any(axis=-1)
    for image, slot in _first(~filled):
        _refuse(image, f"slot {slot} of {n_out}", "gets no token", "one or more")


def _check_index(dest, index):
    """InputError unless `index` is the map of `dest`, and partners stay themselves."""
    for image, slots in enumerate(dest):
        of_image = jax.tree.map(lambda field, image=image: field[image], index)
        _check_tokens(image, slots, of_image)
        _check_groups(image, of_image)


def _check_tokens(image, slots, index):
    """InputError unless the SlotIndex of an image has each token where `slots` has it.

    slots: [n], the slot of each token, or DROPPED
    """
    n = len(slots)
    n_out = len(index.keep)
    real = index.target != n_out
    tokens = np.concatenate([index.keep, index.absorbed[real]])
    slots_of_tokens = np.concatenate([np.arange(n_out), index.target[real]])
    for token, slot in zip(tokens.tolist(), slots_of_tokens.tolist(), strict=True):
        there = "nowhere"
        if 0 <= token < n:
            there = f"slot {slots[token]}"
        if there != f"slot {slot}":
            problem = f"is in slot {slot} of index and in {there} of dest"
            _refuse(image, f"token {token}", problem)
    times = np.bincount(tokens, minlength=n)
    for (token,) in _first(times != (slots != DROPPED)):
        subject = f"token {token} of slot {slots[token]}"
        _refuse(image, subject, f"is {times[token]} times in index", "once")


def _check_groups(image, index):
    """InputError unless `groups` has every slot that absorbs, and its kept tokens."""
    keep = index.keep
    groups = index.groups
    n_out = len(keep)
    real = index.target != n_out
    absorbed = index.absorbed[real]
    target = index.target[real]
    for (number,) in _first(~np.isin(target, groups)):
        problem = f"absorbs token {absorbed[number]} and is not in index.groups"
        _refuse(image, f"slot {target[number]}", problem)
    for (number,) in _first((groups < 0) | (groups >= n_out)):
        subject = f"index.groups[{number}]"
        _refuse(image, subject, f"is slot {groups[number]}", f"0 to {n_out - 1}")
    for (number,) in _first(keep[groups] != index.group_keep):
        slot = groups[number]
        partner = index.group_keep[number]
        # The likeliest mistake has a sentence of its own: a partner that leaves, too.
        if partner not in keep and slot in target:
            token = absorbed[target == slot][0]
            if len(index.target) == len(groups) and index.target[number] == slot:
                token = index.absorbed[number]
            problem = f"is merged into token {partner}, which leaves, at slot {slot}"
            _refuse(image, f"token {token}", problem)
        allowed = f"token {partner}, as index.group_keep has it"
        _refuse(image, f"slot {slot}", f"keeps token {keep[slot]}", allowed)
