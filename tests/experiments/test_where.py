"""The study of sets of blocks."""

import numpy as np

from experiments import where


def test_every_cell_has_its_own_name():
    names = [cell.name for cell in where.list_cells()]
    assert len(names) == len(set(names))


def test_a_nearer_set_is_chosen():
    """Of twelve sets that differ by chance: in 5 % of all draws at most."""
    rng = np.random.default_rng(0)
    left = 0
    for _ in range(200):
        values = {title: rng.gamma(1, 0.1, 200) for title in where.SETS}
        left += where.choose_set(values, "3, 6, 9") != "3, 6, 9"
    assert left <= 10
    values["3, 4, 6"] = 0.7 * values["3, 6, 9"]
    values["3, 4, 6, 8"] = 0.6 * values["3, 6, 9"]
    assert where.choose_set(values, "3, 6, 9") == "3, 4, 6, 8"
    assert where.choose_set(values, "3, 4, 6, 8") == "3, 4, 6, 8"
