"""Cells of a study are measured once."""

from typing import NamedTuple

import pytest

from experiments import study
from imagepiece_jax.errors import InputError


class Cell(NamedTuple):
    name: str


FIRST = Cell("first")
SECOND = Cell("second")
DIGESTS = {"weights": "w", "images": "i"}


def test_cells_are_measured_once(tmp_path):
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
    others = DIGESTS | {"images": "others"}
    with pytest.raises(InputError, match="first is of other weights or images"):
        study.measure_cells([Cell("third"), FIRST], folder, others, measure)
    assert len(measured) == 2


def test_lines_name_the_revision_at_the_start(tmp_path, monkeypatch):
    """A later commit is not the code that runs."""
    monkeypatch.setattr(study, "git_revision", iter(["old", "new", "newer"]).__next__)
    study.measure_cells([FIRST, SECOND], tmp_path, {}, lambda cell: {})
    for line in study.read_runs(tmp_path).values():
        assert line["versions"]["commit"] == "old"


def test_a_name_with_two_lines_is_refused(tmp_path):
    file = tmp_path / study.FILE
    joined = '{"name": "first", "kl": 1}\n{"name": "second", "kl": 2}\n'
    file.write_text(joined)
    assert [*study.read_runs(tmp_path)] == ["first", "second"]
    file.write_text(joined + joined)
    with pytest.raises(InputError, match="runs.jsonl: first has two lines; remove"):
        study.read_runs(tmp_path)
