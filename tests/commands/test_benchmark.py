import itertools
import json

import pytest

import imagepiece_jax
from imagepiece_jax.commands import benchmark
from tests.helpers import tiny_vit
from tests.helpers.run_command import call
from tests.helpers.tiny_benchmark import SMALL, simplify

NAMES = ("dense", "tome:r=2", "dynamicvit:blocks=(1,)")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    return imagepiece_jax.save(tiny_vit.pretrained(depth=2), folder / "trained")


@pytest.fixture(scope="module")
def measured(trained, tmp_path_factory):
    """Measure weights with two reductions at two batch sizes: (output, folder)."""
    folder = tmp_path_factory.mktemp("out")
    words = [trained, "--reductions", *NAMES[1:], *SMALL, "--batch-size", 2, 4]
    words += ["--json", folder / "a.json", "--gelu=tanh"]
    with pytest.MonkeyPatch.context() as patch:
        simplify(patch)
        ended = call(benchmark.main, *words).quiet()
    return ended.out, folder


def read_rows(folder):
    return [json.loads(line) for line in (folder / "a.json").read_text().splitlines()]


def test_every_case_is_printed_and_a_json_line(measured):
    out, folder = measured
    assert [line.split()[0] for line in out.splitlines()[-3:]] == [*NAMES]
    rows = read_rows(folder)
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
