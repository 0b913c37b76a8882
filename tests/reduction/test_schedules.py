import pytest

from imagepiece_jax.reduction.methods import METHODS
from imagepiece_jax.reduction.schedules import check_counts, scheduled_counts
from tests.helpers.named_models import facts
from tests.helpers.refused_calls import refused


@pytest.mark.parametrize(
    "text, ratio, expected",
    [
        ("constant", 0.25, (12, 8, 4, 1)),  # 0 is raised to one token
        ("constant-1", 0.25, (16, 12, 8, 4)),
        ("constant", 0.1, (14, 13, 11, 10)),  # 14.4, 12.8, 11.2, 9.6
        ("proportional", 0.5, (8, 4, 2, 1)),
        ("proportional-2", 0.5, (16, 16, 8, 4)),
        ("stages-1-3", 0.5, (16, 8, 8, 4)),
        ("stages", 0.75, (16, 16, 16, 4)),  # blocks 3, 6 and 9
        ("constant", 0.0, (16,) * 4),
        ("constant", 1.0, (1,) * 4),
        ("diffrate", 1.0, (1,) * 4),
    ],
)
def test_counts_by_hand(text, ratio, expected):
    assert scheduled_counts(text, 4, 16, ratio) == expected


def test_published_counts_are_reached_at_one_half():
    """At 2/3 shares are squared: 180 ** 2 / 196 = 165.3, 132 ** 2 / 196 = 88.9."""
    plan = METHODS["imagepiece"]().plan(facts())
    imagepiece_counts = tuple(layer.mlp_tokens for layer in plan)
    assert scheduled_counts("imagepiece", 12, 196, 0.5) == imagepiece_counts
    stronger_counts = scheduled_counts("imagepiece", 12, 196, 2 / 3)
    assert (stronger_counts[0], stronger_counts[2]) == (165, 89)
    diffrate_counts = (196, 195, 189, 171, 153, 124, 106, 95, 83, 77, 69, 2)
    assert scheduled_counts("diffrate", 12, 196, 0.5) == diffrate_counts
    assert scheduled_counts("diffrate", 6, 196, 0.5) == diffrate_counts[1::2]
    deep_counts = scheduled_counts("diffrate", 24, 196, 0.5)
    assert deep_counts[4] == 192  # the mean of 195 and 189


def test_scaling_keeps_the_proportions_of_removed_tokens():
    """At ratio 3/8, 6 and 3 of 16 tokens leave."""
    method = METHODS["tome"](r=9, inflection=-1.0)
    assert method.scale_schedule(3 / 8, facts(3, 16)).counts == (10, 7, 7)


@pytest.mark.parametrize(
    "value",
    ["", "linear", "stages-6-3", "stages-3_6", "constant-1-2", "diffrate-1"]
    + [[], [3.5, 2], 12, (4, 5), (4, 0)],
)
def test_a_value_that_is_no_schedule_is_refused(value):
    check_counts((4, 4, 2))
    with refused("counts"):
        check_counts(value)
