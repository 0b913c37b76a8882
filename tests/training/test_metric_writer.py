"""The metrics of a run on disk: exact after a kill, and in TensorBoard."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from imagepiece_jax.errors import InputError
from imagepiece_jax.training.logging import MetricWriter, read_metrics


def write_run(workdir, steps, step=0):
    writer = MetricWriter(workdir, step)
    for step in steps:
        writer.write("train", step, epoch=step / 10, loss=1 / (step + 1))
    writer.close()


def lines(workdir):
    return (workdir / "metrics.jsonl").read_text().splitlines()


def test_one_json_object_a_line_at_once(tmp_path):
    writer = MetricWriter(tmp_path / "new" / "run")
    writer.write(
        "eval",
        jnp.asarray(20),
        epoch=2,
        loss=np.float32(0.1),
        acc1=jnp.asarray(97.5),
        lr=math.nan,
        throughput=np.inf,
        note="x",
        none=None,
        ok=np.bool_(True),
    )
    (text,) = lines(tmp_path / "new" / "run")  # before the file is closed
    writer.close()
    writer.close()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "kind": "eval",
        "step": 20,
        "epoch": 2,
        "loss": float(np.float32(0.1)),
        "acc1": 97.5,
        "lr": None,
        "throughput": None,
        "note": "x",
        "none": None,
        "ok": True,
    }


def test_resumed_run_leaves_the_file_of_an_uninterrupted_one(tmp_path):
    write_run(tmp_path / "whole", range(0, 60, 10))
    write_run(tmp_path / "killed", range(0, 50, 10))
    write_run(tmp_path / "killed", [30, 40, 50], step=20)
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")
    assert [line["step"] for line in read_metrics(tmp_path / "killed")] == [
        *range(0, 60, 10)
    ]


def test_nothing_restored_starts_the_file_anew(tmp_path):
    write_run(tmp_path, [0, 10, 20])
    write_run(tmp_path, [0])
    assert [line["step"] for line in read_metrics(tmp_path)] == [0]


@pytest.mark.parametrize(
    "torn", ['{"kind": "tr', '{"kind": "train", "step": 2', "\0\0"]
)
def test_torn_last_line_is_dropped(tmp_path, torn):
    write_run(tmp_path, [10])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(torn)
    assert [line["step"] for line in read_metrics(tmp_path)] == [10]
    write_run(tmp_path, [20], step=10)
    assert [line["step"] for line in read_metrics(tmp_path)] == [10, 20]


def test_last_line_that_lacks_only_its_end_is_kept(tmp_path):
    write_run(tmp_path, [10])
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text().rstrip("\n"))
    write_run(tmp_path, [20], step=10)
    assert [line["step"] for line in read_metrics(tmp_path)] == [10, 20]


@pytest.mark.parametrize("bad", ["nonsense", "[1]", '{"loss": 1}'])
def test_broken_line_in_the_middle_is_named(tmp_path, bad):
    write_run(tmp_path, [10, 20])
    path = tmp_path / "metrics.jsonl"
    path.write_text(bad + "\n" + path.read_text())
    with pytest.raises(InputError, match="metrics.jsonl, line 1: found"):
        read_metrics(tmp_path)
    with pytest.raises(InputError, match="metrics.jsonl, line 1: found"):
        MetricWriter(tmp_path, 10)


def test_other_processes_write_nothing(tmp_path):
    writer = MetricWriter(tmp_path / "run", is_main=False)
    writer.write("train", 1, loss=1.0)
    writer.close()
    assert not (tmp_path / "run").exists()
    assert read_metrics(tmp_path / "run") == []


def events(workdir):
    """Events of the newest TensorBoard file, its record framing taken off by hand."""
    data = max((workdir / "tensorboard").iterdir()).read_bytes()
    found, place = [], 0
    while place < len(data):
        size = int.from_bytes(data[place : place + 8], "little")
        found.append(event_pb2.Event.FromString(data[place + 12 : place + 12 + size]))
        place += 8 + 4 + size + 4
    return found


def test_tensorboard_gets_finite_numbers_and_hides_what_was_cut(tmp_path):
    writer = MetricWriter(tmp_path, step=20)
    writer.write("train", 30, loss=0.5, lr=math.nan, note="x")
    writer.close()
    got = events(tmp_path)
    scalars = [(e.step, v.tag, v.simple_value) for e in got for v in e.summary.value]
    assert scalars == [(30, "train/loss", 0.5)]
    starts = [e.step for e in got if e.HasField("session_log")]
    assert starts == [21]
