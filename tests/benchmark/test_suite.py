"""Groups of programs: batch sizes, memory that is full, results that are kept."""

import json

import pytest

import imagepiece_jax
from imagepiece_jax.benchmark import suite, workloads
from imagepiece_jax.commands import benchmark
from imagepiece_jax.errors import InputError
from tests.benchmark.small import SMALL, simplify
from tests.command import call, sentence
from tests.models import tiny


@pytest.fixture
def words(monkeypatch, tmp_path):
    simplify(monkeypatch)
    folder = imagepiece_jax.save(tmp_path / "weights", tiny.pretrained(depth=1))
    return [folder, *SMALL]


def test_batch_sizes_fall():
    vits = {"dense": tiny.pretrained()}
    found = suite.groups(vits, (1, 8, 32, 8), "float32", "inference")
    assert [group["dense"].batch_size for group in found] == [32, 8, 1]


def test_a_reduction_is_there_once():
    vit = tiny.pretrained()
    with pytest.raises(InputError, match="twice"):
        suite.forms(vit, ["tome:r=1", "tome:r=1"])
    assert [*suite.forms(vit, ["tome:r=1"])] == ["dense", "tome:r=1"]
    assert [*suite.forms(vit.with_reduction("tome:r=1"), [])] == ["dense", "as it is"]


@pytest.mark.parametrize(
    "error", [RuntimeError("RESOURCE_EXHAUSTED: Out of memory, 9 bytes"), MemoryError()]
)
def test_a_full_memory_is_one_sentence(words, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(workloads.Case, "workload", fail)
    said = sentence(call(benchmark.main, *words))
    assert said.startswith("batch_size is 4, for which the memory of")


def test_results_are_kept_when_the_next_group_fails(words, monkeypatch, tmp_path):
    out = tmp_path / "a.json"
    workload = workloads.Case.workload

    def only_four(self, *args):
        if self.batch_size != 4:
            raise MemoryError
        return workload(self, *args)

    monkeypatch.setattr(workloads.Case, "workload", only_four)
    ended = call(benchmark.main, *words, "--batch-size", 2, 4, f"--json={out}")
    assert sentence(ended).startswith("batch_size is 2, for which the memory of")
    assert [json.loads(t)["batch_size"] for t in out.read_text().splitlines()] == [4]
