"""Two processes of one run with different configs stop before they begin.

They are started as SLURM would start them, and meet on the loopback address; the rest
of a run on two hosts is in tools/test_rehearsal.py.
"""

import pytest

from tests import runs


@pytest.fixture
def start_two(tmp_path):
    """`runs.start_two`; what is still running after the test is killed."""
    started = []

    def start(workdir, fields, **of_the_second):
        cache = tmp_path / "cache"
        started.extend(runs.start_two(workdir, fields, cache, **of_the_second))
        return started

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_hosts_with_different_configs_are_refused(tmp_path, start_two):
    """Both name the field, and leave no folder behind."""
    run = tmp_path / "run"
    processes = start_two(run, runs.SMALL, lr=0.5)
    assert [process.wait(timeout=100) for process in processes] == [2, 2]
    for process in (0, 1):
        output = run.with_name(f"run.{process}.log").read_text()
        last = output.strip().splitlines()[-1]
        assert last.startswith("error: config.lr is 0.5 on process 1, but 0.016 on")
    assert not run.exists()
