"""The cores that a process may use."""

import os

import pytest

from imagepiece_jax.common import machine

V1 = {
    "cpu,cpuacct/job/cpu.cfs_quota_us": "400000",
    "cpu,cpuacct/job/cpu.cfs_period_us": "100000",
    "cpu,cpuacct/cpu.cfs_quota_us": "-1",
    "cpu,cpuacct/cpu.cfs_period_us": "100000",
}
OTHER_ORDER = {"cpu/job/cpu.cfs_quota_us": "200000"}
OTHER_ORDER |= {"cpu/job/cpu.cfs_period_us": "100000"}


@pytest.mark.parametrize(
    "cgroup, files, cores",
    [
        ("0::/\n", {}, 8),
        ("0::/\n", {"cpu.max": "max 100000"}, 8),
        ("0::/job\n", {"job/cpu.max": "200000 100000"}, 2),
        ("0::/job/step\n", {"job/cpu.max": "150000 100000"}, 2),
        ("0::/job\n", {"job/cpu.max": "10000 100000"}, 1),
        ("0::/job\n", {"job/cpu.max": "3200000 100000"}, 8),
        ("0::/hosts/path\n", {"cpu.max": "300000 100000"}, 3),  # in a container
        ("5:memory:/\n3:cpu,cpuacct:/job\n0::/\n", V1, 4),
        ("4:cpuacct,cpu:/job\nno colons\n", OTHER_ORDER, 2),
        ("0::/job\n", {"job/cpu.max": "100000 0"}, 8),
    ],
)
def test_a_quota_bounds_the_cores(cgroup, files, cores, tmp_path, monkeypatch):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    (tmp_path / "own").write_text(cgroup)
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    monkeypatch.setattr(machine, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    assert machine.available_cores() == cores


def test_affinity_bounds_the_cores_without_cgroups(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "OWN_CGROUPS", tmp_path / "none")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert machine.available_cores() == 1
    monkeypatch.delattr(os, "sched_getaffinity")
    assert machine.available_cores() == 64
