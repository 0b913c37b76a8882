"""The study of sets of blocks."""

import numpy as np

from experiments import peaks, where
from imagepiece_jax.recovery import block_choice
from imagepiece_jax.reduction import schedules


def test_every_cell_has_its_own_name():
    names = [cell.name for cell in where.list_cells()]
    assert len(names) == len(set(names))


def test_a_nearer_set_is_chosen():
    rng = np.random.default_rng(0)
    values = {title: rng.gamma(1, 0.1, 200) for title in where.SETS}
    values["3, 4, 6"] = 0.7 * values["3, 6, 9"]
    values["3, 4, 6, 8"] = 0.6 * values["3, 6, 9"]
    assert where.choose_set(values, "3, 6, 9") == "3, 4, 6, 8"
    assert where.choose_set(values, "3, 4, 6, 8") == "3, 4, 6, 8"


def test_the_packages_sets_are_the_studys():
    blocks = []
    for schedule in where.SETS.values():
        text = peaks.SCHEDULES.get(schedule, schedule)
        counts = schedules.SCHEDULE_SHAPES[text.split("-")[0]]
        shares = counts(12, 0.5, *schedules.split_schedule(text)[1])
        blocks.append(
            tuple(schedules.find_falls([*map(int, np.multiply(shares, 4096))], 4096))
        )
    assert tuple(blocks) == block_choice.BLOCK_SETS
