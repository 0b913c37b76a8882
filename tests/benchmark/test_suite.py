"""Groups of programs: batch sizes, memory that is full, results that are kept."""

import json

import pytest

from imagepiece_jax.benchmark import suite, workloads
from imagepiece_jax.commands import benchmark
from tests.benchmark.small import SMALL, TINY, simplify
from tests.command import call, sentence


@pytest.fixture
def simple(monkeypatch):
    simplify(monkeypatch)


def refused(*words):
    return sentence(call(benchmark.main, *words))


@pytest.mark.parametrize(
    "texts, sizes", [(["256"], [256]), (["1,8", "32"], [32, 8, 1]), (["8,8"], [8])]
)
def test_batch_sizes_fall(texts, sizes):
    assert suite.batch_sizes(texts) == sizes


@pytest.mark.parametrize(
    "error", [RuntimeError("RESOURCE_EXHAUSTED: Out of memory, 9 bytes"), MemoryError()]
)
def test_a_full_memory_is_one_sentence(simple, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(workloads.Case, "workload", fail)
    assert refused(*TINY, *SMALL).startswith(
        "--batch_size is 4, for which the memory of"
    )


def test_results_are_kept_when_the_next_group_fails(simple, monkeypatch, tmp_path):
    out = tmp_path / "a.json"
    workload = workloads.Case.workload

    def only_four(self, *args):
        if self.batch_size != 4:
            raise MemoryError
        return workload(self, *args)

    monkeypatch.setattr(workloads.Case, "workload", only_four)
    message = refused(*TINY, *SMALL, "--batch_size=2", f"--json={out}")
    assert message.startswith("--batch_size is 2, for which the memory of")
    assert [json.loads(t)["batch_size"] for t in out.read_text().splitlines()] == [4]
