"""The command that compares fused and plain reductions: its table and exit status."""

import pytest

from imagepiece_jax.reduction.kernels import fused
from tests.command import call
from tests.reduction.kernels.inputs import needs_compiler
from tools import check_kernels
from tools import kernel_agreement as agreement
from tools.kernel_agreement import Comparison


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(agreement, "SHAPES", ((12, 2, 8),))
    monkeypatch.setattr(agreement, "BATCH", 4)
    monkeypatch.setattr(agreement, "DTYPES", ("float32",))


@needs_compiler
def test_a_line_for_each_rule(small):
    ended = call(check_kernels.main, "--random=5")
    assert (ended.status, ended.err) == (0, "")
    lines = ended.out.splitlines()[3:]
    assert [line.split(" | ")[2:5] for line in lines] == [
        [rule, "8", "0"] for rule in ("prune", "retokenize", "bipartite")
    ]
    assert all(line.endswith("agree |") for line in lines)


@needs_compiler
def test_a_difference_exits_with_status_1(small, monkeypatch):
    monkeypatch.setattr(Comparison, "agrees", False)
    ended = call(check_kernels.main, "--random=1")
    assert ended.status == 1
    assert "see the table" in ended.err
    assert ended.out.count("DIFFER") == 3


@pytest.mark.parametrize(
    "images, gaps, error, agrees",
    [
        *((101, [], 2.0, True), (101, [1.0], 0, True), (101, [1.1], 0, False)),
        *((101, [], 2.1, False), (100, [0.0], 0, False)),  # one percent differs
    ],
)
def test_what_agrees(images, gaps, error, agrees):
    assert Comparison(images=images, gaps=gaps, error=error).agrees is agrees


def test_missing_kernels_exit_with_status_1(monkeypatch):
    monkeypatch.setattr(fused, "unsupported_reason", lambda *_: "a compiler")
    ended = call(check_kernels.main)
    assert ended.status == 1
    assert "it needs a compiler" in ended.err
