import pytest

from imagepiece_jax.benchmark import suite
from imagepiece_jax.benchmark.workloads import Workload
from imagepiece_jax.common.timer import TimedCall
from imagepiece_jax.errors import InputError
from tests.helpers import tiny_vit


def test_a_reduction_is_there_once():
    vit = tiny_vit.pretrained()
    with pytest.raises(InputError, match="twice"):
        suite.make_variants(vit, ["tome:r=1", "tome:r=1"])
    assert [*suite.make_variants(vit, ["tome:r=1"])] == ["dense", "tome:r=1"]
    own = vit.with_reduction("tome:r=1")
    assert [*suite.make_variants(own, [])] == ["dense", "as it is"]


def test_rows_and_their_table():
    """10 images in a median of 2 seconds; half the MACs in one second."""
    facts = {"peak_memory": 2.5e6, "gelu": "exact"}
    job = TimedCall(None, None)
    programs = {
        "dense": Workload(job, 10, 4e12, facts),
        "half": Workload(job, 10, 2e12, facts | {"peak_memory": None}),
    }
    readings = {"dense": [2.0, 4.0, 1.0], "half": [1.0, 1.0, 1.0]}
    dense, half = rows = suite.make_speed_rows(programs, readings, {"batch_size": 10})
    assert (dense["config"], dense["batch_size"]) == ("dense", 10)
    assert (dense["throughput"], dense["ms"]) == (5.0, 2000.0)
    assert (dense["throughput_min"], dense["throughput_max"]) == (2.5, 10.0)
    assert (dense["gmacs"], dense["tmacs_per_s"]) == (400.0, 2.0)
    assert (dense["ratio"], dense["ratio_min"], dense["ratio_max"]) == (1, 1, 1)
    assert (half["ratio"], half["ratio_min"], half["ratio_max"]) == (2, 1, 4)
    assert half["mac_ratio"] == 2.0
    assert half["seconds_a_call"] == [1.0, 1.0, 1.0]
    heading, *lines = suite.format_speeds(rows).splitlines()
    assert heading.split()[:4] == ["program", "batch", "img/s", "lowest"]
    assert lines[0].split()[:6] == ["dense", "10", "5", "2", "10", "2,000.00"]
    assert lines[0].split()[-1] == "2" and lines[1].split()[-1] == "-"
