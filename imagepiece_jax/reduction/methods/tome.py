"""ToMe: merge what is alike, a little in every block (Bolya et al., ICLR 2023)."""

from imagepiece_jax.errors import InputError
from imagepiece_jax.reduction.methods.method import Method
from imagepiece_jax.reduction.reducers import METRICS, Bipartite
from imagepiece_jax.reduction.schedule import (
    Step,
    check_blocks,
    check_choice,
    check_count,
    is_number,
    rounded,
)


def merges(depth, r, inflection=0.0, r_list=None):
    """Tokens that each block is asked to merge away, a tuple of `depth` ints.

    Linear over the blocks with mean `r`: constant at inflection 0, falling from 2 r to
    0 at -1, rising from 0 to 2 r at 1. `r_list` says it block by block instead; the
    blocks after its end merge nothing.
    """
    check_count("r", r)
    if not is_number(inflection) or not -1 <= inflection <= 1:
        raise InputError(
            f"config.reduction.inflection is {inflection!r}; allowed are numbers from "
            "-1 to 1"
        )
    if r_list is not None:
        r_list = check_blocks("r_list", r_list)
        if len(r_list) > depth:
            raise InputError(
                f"config.reduction.r_list has {len(r_list)} entries; allowed are at "
                f"most {depth}, one for each block"
            )
        given = tuple(check_count("r_list", entry) for entry in r_list)
        return given + (0,) * (depth - len(given))
    low = int(r * (1 - inflection))
    high = 2 * r - low
    return tuple(low + i * (high - low) // max(depth - 1, 1) for i in range(depth))


def recipe(depth, r=13, inflection=0.0, r_list=None, metric="key", round_to=0):
    """In every block merge `r` tokens, or as many as half of the image tokens.

    `inflection` and `r_list` spread them otherwise over the blocks (see `merges`);
    metric: what is compared ("key", "query", "value", "token"); round_to: every step
    leaves a multiple of so many tokens (0: off).
    """
    check_choice("metric", metric, METRICS)
    reducer = Bipartite(metric)
    wanted = merges(depth, r, inflection, r_list)
    steps = [Step(i, reducer, "remove", amount) for i, amount in enumerate(wanted)]
    return rounded(steps, round_to)


METHOD = Method(recipe=recipe, model_fields={"prop_attn": True})
