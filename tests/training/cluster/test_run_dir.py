"""The folder of a run: one config, and every start of it."""

import json

import jax
import pytest

import imagepiece_jax
from imagepiece_jax.common.files import git_revision
from imagepiece_jax.errors import InputError
from imagepiece_jax.training.cluster.run_dir import (
    check_config,
    check_workdir_place,
    read_earlier,
    record_start,
)
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.weights.run_files import RUN_FORMAT as RUN_FORMAT
from tests.helpers import small_runs
from tests.helpers.picture_files import write_plain
from tests.helpers.refused_calls import refused

CONFIG = {
    "format": RUN_FORMAT,
    "lr": 1e-3,
    "epochs": 300,
    "betas": (0.9, 0.999),
    "reduction": "imagepiece:keep_rate=0.7",
    "data": {"workers": 4, "name": "digits"},
    "empty": {},
}


def changed(**fields):
    return {**CONFIG, **fields}


def read(path):
    return json.loads(path.read_text())


def started(workdir, config=CONFIG):
    """Record a start of a run that has taken steps."""
    record_start(workdir, config)
    (workdir / "checkpoints" / "latest" / "5").mkdir(parents=True, exist_ok=True)


def test_the_same_config_is_resumed_and_every_start_is_kept(tmp_path, monkeypatch):
    workdir = tmp_path / "new" / "run"
    record_start(workdir, CONFIG)
    assert read(workdir / "config.json") == json.loads(json.dumps(CONFIG))
    (start,) = read(workdir / "run.json")["starts"]
    assert start["libraries"]["jax"] == jax.__version__
    assert start["git"] == git_revision()
    assert {"time", "command", "python", "devices"} <= set(start)
    assert {p.name for p in workdir.iterdir()} == {"config.json", "run.json"}
    monkeypatch.setattr("sys.argv", ["again"])
    # Fields of one host and of the log may change.
    again = changed(data={"workers": 8, "name": "folder:moved"})
    record_start(workdir, json.loads(json.dumps(again)))
    first, second = read(workdir / "run.json")["starts"]
    assert (first, second["command"]) == (start, ["again"])
    assert read(workdir / "config.json")["data"]["workers"] == 8


@pytest.mark.parametrize(
    "config, field, now, before",
    [
        (changed(lr=2e-3), "lr", "0.002", "0.001"),
        (changed(betas=(0.9, 0.95)), "betas", "[0.9, 0.95]", "[0.9, 0.999]"),
        (changed(data={"flip": True}), "data.flip", "true", "not a field"),
        (changed(empty={"a": {}}), "empty.a", "{}", "not a field"),
    ],
)
def test_another_run_is_refused_with_the_ways_out(tmp_path, config, field, now, before):
    started(tmp_path)
    there = [path.read_text() for path in tmp_path.glob("*.json")]
    for check in (check_config, record_start):
        with refused(
            f"config.{field} is {now}, but {before} in the run in {tmp_path};"
        ):
            check(tmp_path, config)
    assert there == [path.read_text() for path in tmp_path.glob("*.json")]
    check_config(tmp_path / "a", config)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "workdir", ["set", "set/runs/new", "set/train", "photos", "photos/a", "set/../set"]
)
def test_no_run_is_written_among_images(workdir, tmp_path):
    write_plain(tmp_path, "set/train/ant/1.png", "photos/a/2.JPG")
    with pytest.raises(InputError, match="^workdir .* choose another workdir$"):
        check_workdir_place(tmp_path / workdir, f"folder:{tmp_path / 'set'}")


def test_a_run_beside_its_images_or_with_figures_goes_on(tmp_path):
    write_plain(tmp_path, "set/ant/1.png")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/slurm-1.out").touch()
    check_workdir_place(tmp_path / "run", f"folder:{tmp_path / 'set'}")
    check_workdir_place(tmp_path / "set2", f"csv:{tmp_path / 'labels.csv'}")
    record_start(tmp_path / "run", CONFIG)
    (tmp_path / "run/figure.png").touch()
    check_workdir_place(tmp_path / "run", "digits")


def test_a_start_that_took_no_step_does_not_block_the_folder(tmp_path):
    """Stopped in the first compile, say; an accuracy before it may be there."""
    record_start(tmp_path, CONFIG)
    (tmp_path / "metrics.jsonl").write_text('{"kind": "init", "step": 0}\n')
    (tmp_path / "checkpoints" / "latest" / "5.tmp").mkdir(parents=True)
    record_start(tmp_path, changed(lr=2e-3))
    assert read(tmp_path / "config.json")["lr"] == 2e-3
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "step": 22}\n')
    with refused("lr is 0.001, but 0.002 in the run"):
        record_start(tmp_path, CONFIG)


@pytest.mark.parametrize(
    "text, said",
    [(None, "a run without config.json; choose"), ("{", "config.json is not JSON")],
)
def test_a_run_without_its_config_is_refused(tmp_path, text, said):
    started(tmp_path)
    (tmp_path / "config.json").unlink()
    if text:
        (tmp_path / "config.json").write_text(text)
    with refused(said):
        record_start(tmp_path, CONFIG)


@pytest.mark.parametrize(
    "file, damage, said",
    [
        ("config.json", lambda config: config | {"model": 3}, "config: "),
        ("classes.json", lambda config: 3, "not iterable"),
    ],
)
def test_a_damaged_file_of_a_run_is_named(tmp_path, file, damage, said):
    config = RunConfig.from_config(small_runs.configured()).to_dict()
    started(tmp_path, config)
    (tmp_path / "run.json").write_text("{}")  # which is begun anew
    record_start(tmp_path, config)
    (tmp_path / file).write_text(json.dumps(damage(config)))
    with refused(f"{file}: ", said):
        read_earlier(tmp_path)


def test_weights_of_a_run_of_another_version_are_refused(tmp_path):
    config = RunConfig.from_config(small_runs.configured()).to_dict()
    started(tmp_path, config | {"format": 0})
    with refused("format 0; this version reads"):
        check_config(tmp_path, CONFIG)
    with refused("format 0; this version reads"):
        imagepiece_jax.load(tmp_path)


@pytest.mark.parametrize("model", ['{"model_type": "dinov2"}', "{"])
def test_a_folder_with_the_config_of_a_model_is_not_taken(tmp_path, model):
    """As `save` and the hub write it: without it the model could not be loaded."""
    (tmp_path / "config.json").write_text(model)
    (tmp_path / "model.safetensors").write_text("weights")
    for check in (check_config, record_start):
        with refused("config.json is not a run's config; choose "):
            check(tmp_path, CONFIG)
    assert (tmp_path / "config.json").read_text() == model
    assert len([*tmp_path.iterdir()]) == 2
