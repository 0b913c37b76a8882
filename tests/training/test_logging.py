import contextlib
import gzip
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.common import parallel
from imagepiece_jax.training import logging
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.training.data import RunLength
from imagepiece_jax.training.logging import MetricWriter
from tests.helpers import small_runs
from tests.helpers.small_runs import read_metrics


def step_metrics():
    window = {"loss": 64.0, "acc1": 32.0, "acc5": 96.0, "samples": 128.0}
    window["skipped"] = 0.0
    metrics = {"loss": 0.5, "grad_norm": 2.0, "lr": 1e-3, "terms": {"own": 0.25}}
    metrics |= {"window": window, "skipped": np.int32(0)}
    return parallel.replicate(jax.tree.map(np.asarray, metrics))


@pytest.fixture
def begin(tmp_path):
    """A function that makes a RunLog with 20 steps an epoch and 64 images a step."""

    def begin(step=0, **fields):
        fields = {"progress": False, "log_every_steps": 2} | fields
        config = RunConfig.from_config(small_runs.quickstart_config(fields))
        length = RunLength(steps_per_epoch=20, epochs=2, eval_every_epochs=1)
        run_log = logging.RunLog(tmp_path / "run", config, length, step)
        return stack.enter_context(run_log)

    with contextlib.ExitStack() as stack:
        yield begin


def test_a_line_has_the_means_of_its_window(begin, tmp_path):
    run = begin()
    run.take_metrics(1, step_metrics())
    run.take_metrics(2, step_metrics())
    assert read_metrics(tmp_path / "run") == []  # one step behind the device
    run.flush()
    (line,) = read_metrics(tmp_path / "run")
    expected = {"step": 2, "epoch": 0.1, "loss": 0.5, "acc1": 25.0, "acc5": 75.0}
    expected |= {"grad_norm": 2.0, "skipped": 0, "own": 0.25, "lr": 1e-3}
    assert {name: line[name] for name in expected} == pytest.approx(expected)
    # A CPU does not count its memory.
    assert {*line} == {*logging.STEP_METRICS} - {"device_memory"} | {"own"}


def test_throughput_and_input_wait_by_the_clock(begin, tmp_path, monkeypatch):
    """Reading takes three seconds and a step one: 64 images in four seconds.

    A resumed run logs its first step; later programs begin inside windows.
    """
    clock = [100.0]
    monkeypatch.setattr(logging.time, "perf_counter", lambda: clock[0])
    run = begin(step=2, log_every_steps=3)

    def read_batches():
        for step in range(3, 13):
            clock[0] += 3
            yield step

    for step in run.timed_batches(read_batches()):
        if step in (3, 5, 8):
            run.begin_program(step)
            clock[0] += 1000  # the step compiles
        clock[0] += 1
        run.take_metrics(step, step_metrics())
        run.flush()
        if step == 9:  # an evaluation between two windows
            clock[0] += 1000
            run.restart_clock()
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [3, 6, 9, 12]
    # The first window has one compiling step, later ones the steps after it.
    assert [line["throughput"] for line in lines] == [None, *[64 / 4] * 3]
    assert [line["input_wait"] for line in lines] == [None, *[3 / 4] * 3]


def test_a_trace_has_the_chosen_steps(begin, tmp_path, monkeypatch):
    monkeypatch.setattr(logging, "TRACED_STEPS", range(2, 4))
    run = begin(step=20, profile=True)
    for step in range(21, 26):
        with run.traced_step(step):
            metrics = step_metrics()
        run.take_metrics(step, metrics)
    run.close()
    (path,) = (tmp_path / "run" / "profile").rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    steps = [int(e["args"]["step_num"]) for e in events if e.get("name") == "train"]
    # The next step is under way when their metrics arrive.
    assert sorted(steps)[:2] == [22, 23]
    assert set(steps) <= {22, 23, 24}


def test_only_the_main_process_prints_and_writes(begin, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(parallel, "is_main", lambda: False)
    run = begin(step=20, progress=True)
    run.take_metrics(22, step_metrics())
    run.flush()
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr() == ("", "")


def test_a_resumed_run_leaves_an_uninterrupted_runs_file(tmp_path):
    """A torn last line is dropped, like lines after the checkpoint."""

    def write_run(steps, resumed_from=0, torn=""):
        with MetricWriter(tmp_path, resumed_from) as writer:
            for step in steps:
                writer.write_line("train", step, loss=1 / step)
        with open(tmp_path / "metrics.jsonl", "a+") as file:
            file.write(torn)
            file.seek(0)
            return file.read()

    whole = write_run(range(10, 60, 10))
    write_run(range(10, 50, 10), torn='{"kind": "train", "step": 2')
    assert write_run([30, 40, 50], resumed_from=20) == whole
    assert len(write_run([10]).splitlines()) == 1  # nothing was restored


def test_metrics_are_json_written_at_once_and_tensorboards(tmp_path, monkeypatch):
    """TensorBoard gets the finite numbers, and hides a killed run's steps."""

    class Board:
        def __init__(self, folder, purge_step):
            calls.append((folder, purge_step))

        def add_scalar(self, *scalar):
            calls.append(scalar)

        def close(self):
            calls.append("closed")

    calls = []
    monkeypatch.setattr("tensorboardX.SummaryWriter", Board)
    workdir = tmp_path / "new" / "run"
    with MetricWriter(workdir, step=20) as writer:
        values = {"loss": np.float32(0.5), "acc1": jnp.asarray(97.5), "note": "x"}
        writer.write_line("eval", 30, throughput=np.inf, lr=math.nan, **values)
        (text,) = (workdir / "metrics.jsonl").read_text().splitlines()
    expected = {"kind": "eval", "step": 30, "throughput": None, "lr": None}
    expected |= {"loss": 0.5, "acc1": 97.5, "note": "x"}
    assert json.loads(text, parse_constant=pytest.fail) == expected
    scalars = [("eval/loss", 0.5, 30), ("eval/acc1", 97.5, 30)]
    assert calls == [(str(workdir / "tensorboard"), 21), *scalars, "closed"]
