import itertools
import json

import pytest

import imagepiece_jax
from imagepiece_jax.commands import benchmark
from tests.helpers import tiny_vit
from tests.helpers.run_command import call
from tests.helpers.tiny_benchmark import SMALL, simplify

NAMES = ("dense", "tome:r=2", "dynamicvit:blocks=(1,)")


def test_every_case_is_printed_and_a_json_line(tmp_path, monkeypatch):
    weights = imagepiece_jax.save(tiny_vit.pretrained(depth=2), tmp_path / "w")
    file = tmp_path / "a.json"
    words = [weights, "--reductions", *NAMES[1:], *SMALL, "--batch-size", 2, 4]
    simplify(monkeypatch)
    ended = call(benchmark.main, *words, "--json", file, "--gelu=tanh").quiet()
    assert [line.split()[0] for line in ended.out.splitlines()[-3:]] == [*NAMES]
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    cases = itertools.product((4, 2), NAMES)
    assert [(row["batch_size"], row["config"]) for row in rows] == list(cases)
    for row in rows:
        assert 0 < row["throughput_min"] <= row["throughput"] <= row["throughput_max"]
        assert len(row["seconds_a_call"]) == row["repeats"] == 2
        assert row["gelu"] == "tanh"
        assert row["peak_memory"] > 0
        assert row["throughput"] == pytest.approx(row["batch_size"] / row["ms"] * 1e3)
    assert rows[0]["mac_ratio"] == 1 < rows[1]["mac_ratio"]
    assert rows[0]["gmacs"] / rows[1]["gmacs"] == pytest.approx(rows[1]["mac_ratio"])
