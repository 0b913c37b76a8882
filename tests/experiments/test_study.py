"""Cells of a study are measured once."""

from typing import NamedTuple

import pytest

from experiments import study
from imagepiece_jax.errors import InputError


class Cell(NamedTuple):
    name: str


FIRST, SECOND = Cell("first"), Cell("second")
DIGESTS = {"weights": "w", "images": "i"}


def test_cells_are_measured_once(tmp_path, monkeypatch):
    # A later commit is not the code that runs.
    revisions = iter(["old", "new", "newer", "newest", "last"])
    monkeypatch.setattr(study, "git_revision", revisions.__next__)
    measured = []

    def measure(cell):
        measured.append(cell)
        return {"kl": (0.5, len(measured))}

    folder = tmp_path / "new"
    study.measure_cells([FIRST], folder, DIGESTS, measure)
    study.measure_cells([FIRST, SECOND], folder, DIGESTS, measure)
    assert measured == [FIRST, SECOND]
    lines = study.read_runs(folder)
    assert [*lines] == ["first", "second"]
    assert {**DIGESTS, "kl": [0.5, 1]}.items() <= lines["first"].items()
    assert [lines[name]["versions"]["commit"] for name in lines] == ["old", "new"]
    others = DIGESTS | {"images": "others"}
    with pytest.raises(InputError, match="first is of other weights or images"):
        study.measure_cells([Cell("third"), FIRST], folder, others, measure)
    assert len(measured) == 2
    file = folder / study.FILE
    file.write_text(2 * file.read_text())
    with pytest.raises(InputError, match="runs.jsonl: first has two lines; remove"):
        study.read_runs(folder)
