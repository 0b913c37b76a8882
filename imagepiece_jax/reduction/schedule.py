"""How many tokens are in each block? Plain Python, known before anything is traced.

A method's recipe names steps; `build` turns them into one `LayerPlan` a block. The
model, the MAC counter, the benchmark, the pictures and the tests all read this plan.
"""

import dataclasses
import math
import numbers
from typing import Any

from imagepiece_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Step:
    """One reduction: at `block`, by `rule` and `amount`, decided by `reducer`.

    `when_masked` is for methods that train with a mask instead of removing tokens: how
    many tokens the step adds then; None: it removes what it removes in evaluation.
    `site` is "mid" (between attention and MLP) or "pre" (before the block). `round_to`:
    the tokens after the step, prefix included, are a multiple of it; 0: as the rule
    says. `reducer` is a frozen dataclass or an unbound Flax module; nothing here looks
    inside it.
    """

    block: int
    reducer: Any
    rule: str
    amount: Any
    site: str = "mid"
    when_masked: int | None = None
    round_to: int = 0


@dataclasses.dataclass(frozen=True)
class Counts:
    """Image tokens into and out of a step, candidates of a merge, step number.

    `stage` counts, from 1, the steps that change something.
    """

    n_in: int
    n_out: int
    candidates: int | None = None
    stage: int = 1


@dataclasses.dataclass(frozen=True)
class LayerPlan:
    """Tokens (prefix included) into the attention and the MLP of one block.

    `counts` is None where there is no step, or where a step changes nothing: the
    program is then the dense one, yet the step stays, so that its parameters exist.
    """

    attn_tokens: int
    mlp_tokens: int
    step: Step | None = None
    counts: Counts | None = None


def ceil(x):
    """Ceiling that binary rounding cannot change: 0.07 * 100 is 7, not 8."""
    return math.ceil(x - 1e-9)


def floor(x):
    """Floor that binary rounding cannot change: 0.7 * 90 is 63, not 62."""
    return math.floor(x + 1e-9)


def is_number(value):
    """Whether it is a real number, NumPy's included, and not a truth value."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_rate(name, value):
    """`value` as a float in [0, 1], else an InputError that names the field."""
    if not is_number(value) or not 0 <= value <= 1:
        raise InputError(
            f"config.reduction.{name} is {value!r}; allowed are numbers from 0 to 1"
        )
    return float(value)


def check_count(name, value, least=0):
    """`value` if it is an int of `least` or more, else an InputError."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or value < least:
        raise InputError(
            f"config.reduction.{name} is {value!r}; allowed are whole numbers from "
            f"{least}"
        )
    return int(value)


def check_weight(name, value):
    """`value` as a float of 0 or more, else an InputError that names the field."""
    if not is_number(value) or not 0 <= value < math.inf:
        raise InputError(
            f"config.reduction.{name} is {value!r}; allowed are numbers from 0"
        )
    return float(value)


def check_blocks(name, blocks):
    """`blocks` as a tuple of ints, else an InputError that names the field."""
    if not isinstance(blocks, tuple | list) or not all(map(_is_block, blocks)):
        raise InputError(
            f"config.reduction.{name} is {blocks!r}; allowed are whole numbers, such "
            "as (3, 6, 9)"
        )
    return tuple(int(block) for block in blocks)


def _is_block(block):
    return isinstance(block, numbers.Integral) and not isinstance(block, bool)


def check_switch(name, value):
    """`value` if it is a truth value, else an InputError that names the field."""
    return check_choice(name, value, (True, False))


def check_choice(name, value, allowed):
    """`value` if it is one of `allowed`, else an InputError that lists them."""
    # 1 == True: what is equal must be of the same kind, too.
    if not any(value is a or (value == a and type(value) is type(a)) for a in allowed):
        listed = ", ".join(repr(a) for a in allowed)
        raise InputError(f"config.reduction.{name} is {value!r}; allowed are {listed}")
    return value


def _keep(amount, n, n0, stage):
    kept = max(1, ceil(amount * n))
    return None if kept == n else (kept, None)


def _keep_fuse(amount, n, n0, stage):
    kept = max(1, ceil(amount * n))
    return None if kept == n else (kept + 1, None)


def _keep_half(amount, n, n0, stage):
    kept = max(1, ceil(amount * n))
    # A bipartite matching cannot remove more than one of its two sides.
    return None if kept == n else (max(kept, n - n // 2), None)


def _keep_initial(amount, n, n0, stage):
    kept = max(1, floor(amount * n0))
    return None if kept >= n else (kept, None)


def _keep_initial_package(amount, n, n0, stage):
    kept = max(1, floor(amount * n0)) + stage
    return None if kept >= n else (kept, None)


def _remove(amount, n, n0, stage):
    removed = min(amount, n // 2)
    return None if removed == 0 else (n - removed, None)


def _merge(amount, n, n0, stage):
    merge_ratio, candidate_ratio, base = amount
    candidates = floor(candidate_ratio * n)
    # The class token counts in the published arithmetic: 197 tokens merge by 16.
    wanted = ceil(merge_ratio * (candidates if base == "candidates" else n + 1))
    merges = min(wanted, candidates // 2)
    return None if merges == 0 else (n - merges, candidates)


def _fixed(amount, n, n0, stage):
    return (amount, None)


# rule -> (amount, image tokens now, at first, number of the step)
#         -> (image tokens after, candidates of a merge), or None: no change
RULES = {
    "keep": _keep,
    "keep_fuse": _keep_fuse,
    "keep_half": _keep_half,
    "keep_initial": _keep_initial,
    "keep_initial_package": _keep_initial_package,
    "remove": _remove,
    "merge": _merge,
    "fixed": _fixed,
}


def count(step, n, n0, stage=1):
    """Counts of `step` on `n` image tokens (`n0` before any step); None: no change."""
    check_choice("rule", step.rule, tuple(RULES))
    result = RULES[step.rule](step.amount, n, n0, stage)
    if result is None:
        return None
    n_out, candidates = result
    return Counts(n_in=n, n_out=n_out, candidates=candidates, stage=stage)


def rounded(steps, round_to):
    """`steps`, each to leave a multiple of `round_to` tokens; 0 leaves them alone.

    The prefix counts: attention and products run over all tokens. Each step leaves the
    multiple nearest to what it would leave without rounding (of two the smaller), so
    what one step adds another takes back. A matching still takes at most one of its
    two sides; a step that could only stay where it is disappears.
    """
    round_to = check_count("round_to", round_to)
    return tuple(dataclasses.replace(step, round_to=round_to) for step in steps)


def _to_multiple(step, counts, n, num_prefix):
    """`counts` without rounding -> those of `step` on `n` tokens; None: no change."""
    fewest, candidates = 1, None
    if step.rule == "merge":
        candidates = floor(step.amount[1] * n)
        fewest = n - candidates // 2
    elif step.rule in ("remove", "keep_half"):
        fewest = n - n // 2
    multiple = step.round_to
    nearest = (counts.n_out + num_prefix + (multiple - 1) // 2) // multiple
    least = -(-(fewest + num_prefix) // multiple)
    n_out = max(nearest, least) * multiple - num_prefix
    if n_out >= n:
        return None
    return Counts(n_in=n, n_out=n_out, candidates=candidates, stage=counts.stage)


def build(depth, n0, steps, num_prefix=1, masked=False):
    """Token counts of every block: a tuple of `depth` LayerPlans.

    `n0` image tokens enter block 0, beside `num_prefix` class and distillation tokens,
    which no step touches. `masked` gives the plan of masked training: a step with
    `when_masked` removes nothing there. Raises InputError for a step outside the model,
    for two steps on one block, and for multiples that no step can reach.
    """
    at = {}
    for step in steps:
        check_blocks("blocks", (step.block,))
        if not 0 <= step.block < depth:
            raise InputError(
                f"config.reduction has a step at block {step.block}, but the model has "
                f"blocks 0 to {depth - 1}"
            )
        if step.block in at:
            raise InputError(
                f"config.reduction has two steps at block {step.block}; allowed is one "
                "a block"
            )
        if step.round_to >= n0 + num_prefix:
            raise InputError(
                f"config.reduction.round_to is {step.round_to}; allowed are numbers "
                f"below the {n0 + num_prefix} tokens of the model, and 0: off"
            )
        at[step.block] = step
    plan, stage = [], 1
    n, held = n0, n0  # tokens in evaluation, tokens held in this plan
    exact = n0  # tokens in evaluation if no step had rounded
    for block in range(depth):
        step = at.get(block)
        counts = None
        if step:
            counts = count(step, exact if step.round_to else n, n0, stage)
        if counts:
            exact = counts.n_out
        if counts and step.round_to:
            counts = _to_multiple(step, counts, n, num_prefix)
        if counts:
            n, stage = counts.n_out, stage + 1
            counts = _held_counts(step, counts, held) if masked else counts
        after = counts.n_out if counts else held
        before = after if step and step.site == "pre" else held
        plan.append(LayerPlan(before + num_prefix, after + num_prefix, step, counts))
        held = after
    return tuple(plan)


def _held_counts(step, counts, held):
    """`counts` of evaluation -> those of masked training, where `held` tokens are."""
    change = counts.n_out - counts.n_in
    change = change if step.when_masked is None else step.when_masked
    return dataclasses.replace(counts, n_in=held, n_out=held + change)


def image_tokens(plan, n0):
    """Image tokens that leave the last block of `plan`, of `n0` that entered."""
    changed = [layer.counts.n_out for layer in plan if layer.counts]
    return changed[-1] if changed else n0
