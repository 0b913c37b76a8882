"""Steps and schedules of methods, computed by hand."""

import numpy as np
import pytest

from imagepiece_jax.errors import InputError
from imagepiece_jax.kernels.merging import DROPPED
from imagepiece_jax.reduction import block_plan
from imagepiece_jax.reduction.block_plan import StepCounts
from imagepiece_jax.reduction.methods import METHODS
from imagepiece_jax.reduction.methods.diffrate import PruneAndMerge
from imagepiece_jax.reduction.methods.evit import EViT
from imagepiece_jax.reduction.methods.grid_pooling import Cells
from imagepiece_jax.reduction.methods.imagepiece import ImagePiece, Retokenize
from imagepiece_jax.reduction.methods.imagepiece_tome import ImagePieceToMe
from imagepiece_jax.reduction.methods.mctf import Fusion
from imagepiece_jax.reduction.methods.method import Method
from imagepiece_jax.reduction.methods.pitome import ByEnergy, PiToMe
from imagepiece_jax.reduction.methods.tofu import Discard, Fuse, ToFu
from imagepiece_jax.reduction.methods.tome import ToMe
from imagepiece_jax.reduction.reducers import Bipartite
from imagepiece_jax.reduction.state import ReducerInputs, TokenState
from tests.helpers.named_models import facts
from tests.helpers.reduction_steps import apply, decide, vectors
from tests.helpers.rounding import assert_close


def reduce_once(reducer, counts, x, size=None, num_prefix=1, **inputs):
    """(slots of the image tokens, the state after a step) of one image [1, n, dim].

    inputs: scores and features of the image tokens
    """
    size = np.ones(x.shape[:2], np.float32) if size is None else np.float32([size])
    image = (values[:, num_prefix:] for values in (x, size, size))
    inputs = ReducerInputs(*image, num_prefix=num_prefix, **inputs)
    result = decide(reducer, inputs, counts)
    state = apply(TokenState(x, size, num_prefix=num_prefix), result)
    return result.slot_of_token[0].tolist(), state


ATTENTION = [0.20, 0.05, 0.15, 0.02, 0.12, 0.04, 0.10, 0.03, 0.01, 0.18]
CIRCLE = vectors([5, 30, 80, 33, 60, 70, 20, 75, 28, 0])


@pytest.mark.parametrize(
    "candidates, merges, values, sizes",
    [
        # A = 6 5 3, B = 1 7 8: 6 joins 8, 5 joins 7, 3 joins 1
        (6, 3, [0, 2, 2, 4, 6, 7.5, 9], [1, 2, 1, 1, 2, 4, 1]),
        # A = 7 8, B = 3: only 8 joins
        (3, 1, [0, 1, 2, 6.75, 4, 5, 6, 7, 9], [1, 1, 1, 4, 1, 1, 1, 1, 1]),
    ],
)
def test_imagepiece(candidates, merges, values, sizes):
    counts = StepCounts(n_in=10, n_out=10 - merges, candidates=candidates)
    # The class token is -1, then token i is i. Token 8 has three patches.
    x = np.arange(-1.0, 10.0, dtype=np.float32)[None, :, None]
    size = [1] * 9 + [3, 1]
    features = {"metric": CIRCLE, "cls_attn": np.float32([ATTENTION])}
    _, after = reduce_once(Retokenize(), counts, x, size, **features)
    assert_close(after.x[0, :, 0], [-1, *values], units=8)
    assert after.size[0].tolist() == [1, *sizes]


def test_diffrate():
    """Tokens by falling attention, class token first: four stay, three join."""
    x = vectors([0, 10, 40, 70, 100, 12, 60, 95], [1, 1, 2, 3, 4, 5, 6, 7])
    attention = np.float32([[0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]])
    step = (StepCounts(n_in=7, n_out=4), x, [1, 1, 1, 2, 1, 1, 3, 1])
    slots, after = reduce_once(PruneAndMerge(kept=7), *step, cls_attn=attention)
    assert slots == [0, 1, 2, 3, 0, 2, 3]
    tokens = [(1, 0), (2.9378, 0.6066), (1.5321, 1.2856), (2.013, 4.0076)]
    tokens.append((-0.6523, 5.4563))
    np.testing.assert_allclose(after.x[0], tokens, atol=1e-4)
    sizes = [1, 1.9994, 1, 4.9544, 1.9962]
    np.testing.assert_allclose(after.effective_size[0], sizes, atol=1e-4)
    assert after.size.tolist() == [[1, 2, 1, 5, 2]]
    slots, _ = reduce_once(PruneAndMerge(kept=5), *step, cls_attn=attention)
    assert slots == [0, 1, 2, 3, 0, DROPPED, DROPPED]


def test_mctf():
    x = vectors([0, 10, 30, 35, 60, 70, 80, 160], [1, 1, 1, 2, 1, 1, 1, 1])
    row = np.exp(np.float32([0, 0.5, -0.5, 1, 0, -0.2, 0.3, -1]))
    received = row[None, 1:] / row.sum()
    slots, after = reduce_once(
        Fusion(),
        StepCounts(n_in=7, n_out=4),
        x,
        [1, 1, 2, 1, 1, 4, 1, 1],
        metric=x[:, 1:],
        attn_columns=received,
    )
    assert slots == [2, 0, 0, 1, 1, 1, 3]  # {2, 3}, {4, 5, 6}, {1}, {7}
    expected = [(1, 0), (1.4, 0.9475), (0.3297, 0.9374), (0.9848, 0.1736)]
    expected.append((-0.9397, 0.342))
    np.testing.assert_allclose(after.x[0], expected, atol=1e-4)
    assert after.size.tolist() == [[1, 3, 6, 1, 1]]


@pytest.mark.parametrize(
    "protect, progress, merged_groups",
    [(False, 0, [{2, 3}, {4, 5}]), (True, 2 / 3, [{1, 2, 3}])],
)
def test_both_halves_of_pitome(protect, progress, merged_groups):
    key = vectors([0, 8, 20, 24, 90, 96, 150, 200])
    x = np.arange(1, 9, dtype=np.float32)[None, :, None]
    counts = StepCounts(n_in=8, n_out=6, progress=progress)
    features = {"metric": key, "key": key, "num_prefix": 0}
    slots, after = reduce_once(ByEnergy(protect), counts, x, **features)
    groups = [set(np.flatnonzero(np.equal(slots, slot))) for slot in range(6)]
    assert [group for group in groups if len(group) > 1] == merged_groups
    means = [np.mean([1 + token for token in group]) for group in groups]
    assert_close(after.x[0, :, 0], np.asarray(means))
    protects = [step.reducer.protect for step in PiToMe().steps(facts(5))]
    assert protects == [False] * 3 + [True] * 2


@pytest.mark.parametrize(
    "reducer, third, fifth",
    [(Discard(), (1, 1), (0, 2)), (Fuse(), (7.0711, 1.4142), (0, 12))],
)
def test_tofu(reducer, third, fifth):
    """Token 4 leaves to token 3, and token 6 to token 5."""
    key = vectors([10, 14, 50, 47, 90, 88])
    x = np.float32([[(1, 0), (2, 0), (0, 3), (1, 1), (4, 0), (0, 2), (0, 6)]])
    _, after = reduce_once(reducer, StepCounts(n_in=6, n_out=4), x, metric=key)
    expected = [(1, 0), (0, 3), (2, 0), third, fifth]
    np.testing.assert_allclose(after.x[0], expected, atol=1e-4)
    is_fused = isinstance(reducer, Fuse)
    assert after.size.tolist() == [[1, 1, 1, 1 + is_fused, 1 + is_fused]]
    steps = ToFu().steps(facts())
    assert [type(step.reducer) for step in steps] == [Discard] * 7 + [Fuse] * 5


@pytest.mark.parametrize(
    "grid, size", [((5, 5), 3), ((4, 6), 4), ((7, 3), 1), ((5, 5), 5)]
)
def test_cells_are_parts_of_the_grid(grid, size):
    row, column = np.indices(grid).reshape(2, -1)
    cell_of_patch = row * size // grid[0] * size + column * size // grid[1]
    x = np.ones((2, len(row), 3), np.float32)
    inputs = ReducerInputs(x, x[..., 0], grid=grid)
    result = decide(Cells(size), inputs, StepCounts(len(row), size * size))
    np.testing.assert_array_equal(result.slot_of_token, [cell_of_patch] * 2)
    assert result.mean and result.by_size


@pytest.mark.parametrize(
    "size, grid, message",
    [(4, (9, 3), "grid_size is 4, .* .9, 3."), (2, None, "grid here is None")],
)
def test_a_smaller_or_missing_grid_is_refused(size, grid, message):
    with pytest.raises(InputError, match=message):
        Cells(size).check_fits(grid, StepCounts(n_in=27, n_out=size * size))


@pytest.mark.parametrize(
    "epoch, rate",
    [(0, 1), (10, 1), (35, 0.95607), (60, 0.85), (85, 0.74393), (109, 0.70007)]
    + [(110, 0.7), (299, 0.7)],
)
def test_keep_rate_of_an_epoch_in_evit(epoch, rate):
    """10 epochs at 1, then a half cosine of 0 or 100 epochs to 0.7."""
    method = EViT(rate_warmup_start=10, rate_warmup_epochs=100)
    assert abs(method.rate_at(epoch) - rate) < 5e-6
    for options in ({}, {"rate_warmup_start": 10, "rate_warmup_epochs": 0}):
        assert EViT(**options).rate_at(epoch) == 0.7


@pytest.mark.parametrize("ratio, kept", [(0, 64), (0.25, 51), (0.75, 8), (1, 1)])
def test_a_method_without_a_rule_of_its_own_scales_by_powers(ratio, kept):
    """Of the share 0.5: its cube root (0.794), and its cube."""
    method = METHODS["attended"](keep_rate=0.5, blocks=(1,))
    scaled = Method.scale_schedule(method, ratio, facts(depth=3, patches=64))
    assert scaled.counts == (64, kept, kept)


@pytest.mark.parametrize(
    "depth, r, inflection, published",
    [
        (12, 16, 0.0, [16] * 12),
        (12, 16, -1.0, [32, 29, 26, 23, 20, 17, 14, 11, 8, 5, 2, 0]),
        (12, 16, 1.0, [0, 2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32]),
        (12, 16, -0.5, [24, 22, 21, 19, 18, 16, 15, 13, 12, 10, 9, 8]),
        (1, 8, -0.5, [12]),
    ],
)
def test_schedules_of_tomes_authors(depth, r, inflection, published):
    assert list(ToMe(r=r, inflection=inflection).removed_counts(depth)) == published


@pytest.mark.parametrize(
    "depth, merge, prune",
    [
        (12, (0, 1, 3, 4, 6, 7), (2, 5, 8)),
        (4, (0, 1), (2,)),
        (6, (0, 1), (2,)),
        (8, (0, 1, 3, 4), (2, 5)),
        (16, (0, 1, 3, 4, 6, 7, 9, 10), (2, 5, 8, 11)),
    ],
)
def test_a_cycle_of_imagepiece_merges_twice_and_prunes_once(depth, merge, prune):
    steps = ImagePiece().steps(facts(depth))
    rules = {step.block: type(step.rule) for step in steps}
    merge_rules = dict.fromkeys(merge, block_plan.MergeCandidates)
    assert rules == merge_rules | dict.fromkeys(prune, block_plan.KeepShare)
    assert all(step.site == "mid" for step in steps)
    block_plan.plan_blocks(depth, 196, steps)


@pytest.mark.parametrize(
    "own, ratio, rates",
    [
        ((0.8, 0.08), 0, (1.0, 0.0)),
        ((0.8, 0.08), 0.1, (0.9, 0.04)),
        ((0.8, 0.08), 1, (0.0, 0.4)),
        ((0.6, 0.1), 0.4, (0.6, 0.1)),
    ],
)
def test_scaled_rates_of_imagepiece_keep_their_proportion(own, ratio, rates):
    scaled = ImagePiece(*own).scale_schedule(ratio, facts())
    assert (scaled.keep_rate, scaled.merge_ratio) == rates


def test_steps_of_imagepiece_tome():
    fields = {"metric": "value", "merge_ratio": 0.15, "parity": 1, "keep_rate": 0.5}
    fields |= {"merge_blocks": (1,), "prune_blocks": (0, 2)}
    first_prune, merge, last_prune = ImagePieceToMe(**fields).steps(facts())
    assert merge == ImagePiece(**fields).steps(facts())[1]
    for block, step in ((0, first_prune), (2, last_prune)):
        rule = block_plan.KeepAtLeastHalf(0.5)
        assert step == block_plan.Step(block, Bipartite("value"), rule)
