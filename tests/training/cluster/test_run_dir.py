import json

import jax
import pytest

from imagepiece_jax.training.cluster.run_dir import check_config, record_start
from imagepiece_jax.weights.folder_files import RUN_FORMAT as RUN_FORMAT
from tests.helpers.refused_calls import refused

CONFIG = {
    "format": RUN_FORMAT,
    "lr": 1e-3,
    "betas": (0.9, 0.999),
    "data": {"workers": 4, "name": "digits"},
    "empty": {},
}


def read_json(path):
    return json.loads(path.read_text())


def record_steps(workdir, config=CONFIG):
    """Record a run's start, and add a step."""
    record_start(workdir, config)
    (workdir / "checkpoints" / "latest" / "5").mkdir(parents=True, exist_ok=True)


def test_a_config_is_resumed_and_every_start_is_kept(tmp_path, monkeypatch):
    workdir = tmp_path / "new" / "run"
    record_steps(workdir)
    assert read_json(workdir / "config.json") == json.loads(json.dumps(CONFIG))
    (start,) = read_json(workdir / "run.json")["starts"]
    assert start["libraries"]["jax"] == jax.__version__
    assert {"git", "time", "command", "python", "devices"} <= set(start)
    monkeypatch.setattr("sys.argv", ["again"])
    # Fields of one host and of the log may change.
    moved = CONFIG | {"data": {"workers": 8, "name": "folder:moved"}}
    record_start(workdir, json.loads(json.dumps(moved)))
    first, second = read_json(workdir / "run.json")["starts"]
    assert (first, second["command"]) == (start, ["again"])
    assert read_json(workdir / "config.json")["data"]["workers"] == 8


@pytest.mark.parametrize(
    "changes, field, now, before",
    [
        ({"lr": 2e-3}, "lr", "0.002", "0.001"),
        ({"data": {"flip": True}}, "data.flip", "true", "not a field"),
        ({"empty": {"a": {}}}, "empty.a", "{}", "not a field"),
    ],
)
def test_another_config_is_refused(tmp_path, changes, field, now, before):
    record_steps(tmp_path)
    with refused(f"config.{field} is {now}, but {before} in the run in {tmp_path};"):
        record_start(tmp_path, CONFIG | changes)
    assert read_json(tmp_path / "config.json") == json.loads(json.dumps(CONFIG))


def test_a_start_without_steps_does_not_block_the_folder(tmp_path):
    record_start(tmp_path, CONFIG)
    (tmp_path / "checkpoints" / "latest" / "5.tmp").mkdir(parents=True)
    record_start(tmp_path, CONFIG | {"lr": 2e-3})
    assert read_json(tmp_path / "config.json")["lr"] == 2e-3


def test_a_models_folder_is_no_workdir(tmp_path):
    """`save` and the hub write such a config.json, and loading needs it."""
    (tmp_path / "config.json").write_text("{")
    with refused("config.json is not a run's; choose "):
        check_config(tmp_path, CONFIG)
