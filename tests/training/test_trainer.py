"""A whole run in this process: its programs, what it leaves, and how it stops."""

import functools
import itertools
import json
import re
import shutil

import pytest
from PIL import Image

import imagepiece_jax
from imagepiece_jax.errors import InputError, RunError
from imagepiece_jax.models.config import MEAN
from imagepiece_jax.training.cluster.checkpoint import Checkpoints, RunProgress
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.training.logging import read_metrics
from imagepiece_jax.training.report import macs_by_epoch
from tests import runs
from tests.data.test_worker_pool import shared_memory, workers
from tests.rounding import assert_close

pytestmark = pytest.mark.usefixtures("quickly_begun")

# 1,438 digits of 16 patches, 256 a step: 5 steps an epoch.
PLAIN = {"model.depth": 1, "model.stem": "patch"}  # compiles fast
NO_REDUCTION = {"reduction": "imagepiece:merge_blocks=():prune_blocks=()"}
FIELDS = runs.SMALL | {"batch_size": 256, "eval_batch_size": 359}
FIELDS |= {"epochs": 2, "warmup_epochs": 0.0, "model.patch_size": 4}


configured = functools.partial(runs.configured, FIELDS)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    last = runs.train(configured(profile=True), workdir)
    return workdir, last


def test_metrics_have_every_step_and_both_evaluations(finished):
    workdir, last = finished
    train = runs.lines(workdir, "train")
    assert [line["step"] for line in train] == list(range(1, 11))
    first, *rest = train
    assert first["throughput"] is None is first["input_wait"], "it compiles"
    assert all(line["throughput"] > 0 <= line["input_wait"] < 1 for line in rest)
    assert all(line["grad_norm"] > 0 == line["skipped"] for line in train)
    (evaluated,) = runs.lines(workdir, "eval")
    assert (evaluated["step"], evaluated["acc1"]) == (10, last["acc1"])
    assert evaluated["images"] == 359  # 359 = 36 * 10 - 1: every image of the fifth
    assert_close(train[-1]["epoch"], 2.0, units=1)


def test_run_leaves_config_versions_classes_and_checkpoints(finished):
    workdir, _ = finished
    saved = json.loads((workdir / "config.json").read_text())
    assert saved["model"]["mean"] == list(MEAN)
    assert saved["batch_size"] == 256
    assert saved["reduction"].startswith("imagepiece")
    start = json.loads((workdir / "run.json").read_text())["starts"][0]
    assert {"git", "python", "libraries", "devices"} <= set(start)
    assert Checkpoints(workdir).latest_step() == 10
    assert list((workdir / "profile").rglob("*.trace.json.gz"))
    digits = [str(digit) for digit in range(10)]
    assert json.loads((workdir / "classes.json").read_text()) == digits
    assert imagepiece_jax.load(workdir).class_names == tuple(digits)


def test_a_run_with_other_classes_is_not_resumed(finished, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    names = json.loads((workdir / "classes.json").read_text())
    names[3] = "drei"
    names[4] = "vier"
    (workdir / "classes.json").write_text(json.dumps(names))
    message = rf"^{workdir}: class 3 is 'drei', but '3' in config.data.name 'digits'; "
    with pytest.raises(InputError, match=message + "choose another workdir"):
        runs.train(configured(profile=True), workdir)


def test_a_run_whose_config_has_another_normalization_is_refused(finished, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    path = workdir / "config.json"
    config = json.loads(path.read_text())
    config["model"]["std"] = [0.1, 0.2, 0.3]
    path.write_text(json.dumps(config))
    said = f"{path}: model.std is [0.1, 0.2, 0.3], but the run was trained with "
    for use in (
        lambda: runs.train(configured(profile=True), workdir),
        lambda: imagepiece_jax.load(workdir),
    ):
        with pytest.raises(InputError, match=re.escape(said)):
            use()


def test_a_finished_run_stays_as_it_is(finished, capsys):
    """It is not trained again, and another config is refused."""
    workdir, last = finished
    before = (workdir / "metrics.jsonl").read_bytes()
    assert runs.train(configured(profile=True), workdir) == last
    assert "this run is complete: 10 steps" in capsys.readouterr().out
    assert (workdir / "metrics.jsonl").read_bytes() == before
    times = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    longer = "config.epochs is 99, but 2 in the run in .*; change it back, or choose"
    with pytest.raises(InputError, match=longer):
        runs.train(configured(epochs=99), workdir)
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == times


def test_dry_run_says_what_would_happen_and_writes_nothing(tmp_path, capsys):
    config = configured(**PLAIN, **NO_REDUCTION)
    runs.train(config, tmp_path / "run", dry_run=True)
    printed = capsys.readouterr().out
    macs = macs_by_epoch(RunConfig.from_config(config))[0]
    flop = 10 * 256 * 3 * macs * 2  # forward, and twice as much backward
    assert f"10 steps: 2 epochs of 5, {flop / 1e18:#.3g} EFLOP (" in printed
    assert f"learning rate: {configured().lr * 256 / 512:.4g} after a" in printed
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def stopped(finished, tmp_path_factory):
    """A run from the finished one's weights, whose first step throws them far off."""
    workdir = tmp_path_factory.mktemp("stopped")
    start = shutil.copytree(finished[0], tmp_path_factory.mktemp("start") / "run")
    fields = {"lr": 1e30, "checkpoint_every_steps": 1, "max_skipped_steps": 2}
    fields |= {"init.weights": str(start)}
    errors = []
    lines = []
    with pytest.MonkeyPatch.context() as patch:
        runs.compile_once(patch)
        for _ in range(2):  # the second time from where the first was stopped
            with pytest.raises(RunError) as error:
                runs.train(configured(**fields), workdir)
            errors.append(str(error.value))
            lines.append(read_metrics(workdir))
            shutil.rmtree(start, ignore_errors=True)  # a resumed run needs it no more
    return workdir, errors, lines


def test_steps_that_are_not_finite_stop_the_run_and_stop_it_again(stopped):
    workdir, errors, lines = stopped
    message = r"(loss|grad_norm) is nan at step (\d+), as in 3 steps in a row: .* kept"
    step = int(re.match(message, errors[0])[2])
    assert errors[1] == errors[0]
    # The last step has no line and no checkpoint: what is kept is as good as before.
    assert Checkpoints(workdir).latest_step() == step - 1
    steps = runs.lines(workdir, "train")
    assert [line["skipped"] for line in steps] == [0] * (step - 3) + [1, 1]
    nothing = [line["loss"] is None is line["acc1"] for line in steps]
    assert nothing == [False] * (step - 3) + [True] * 2
    assert lines[1] == lines[0]


def test_the_best_is_the_first_of_the_highest():
    progress = RunProgress([], [])
    best = []
    for step, accuracy in enumerate((50, 40, 55, 55), start=1):
        figures = {"acc1": accuracy, "ema_acc1": 90}
        progress = progress.with_evaluation(step, figures | {"throughput": 9})
        assert (progress.evaluated, progress.last) == (step, figures)
        best.append(progress.best["step"])
    assert best == [1, 1, 3, 3]
    assert progress.best == {"acc1": 55, "step": 3}


def test_a_test_split_chooses_no_step(tmp_path, capsys):
    """The last step is the best where a set has no validation split."""
    progress = RunProgress([], [])
    for step, accuracy in enumerate((50, 55, 40), start=1):
        progress = progress.with_evaluation(step, {"acc1": accuracy}, chooses=False)
    assert progress.best == {"acc1": 40, "step": 3}
    for split in ("train", "test"):
        for name, shade in itertools.product("ab", range(8)):
            path = tmp_path / "set" / split / name / f"{shade}.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            # Every image is as likely of either class: 50 % whatever is learned.
            Image.new("RGB", (16, 16), (shade,) * 3).save(path)
    fields = {"data.name": f"folder:{tmp_path}/set", "num_classes": 2, "epochs": 2}
    fields |= {"batch_size": 8, "eval_batch_size": 16}
    runs.train(configured(runs.DENSE, PLAIN, **fields), tmp_path / "run")
    steps = [path.name for path in (tmp_path / "run/checkpoints/best").glob("[0-9]*")]
    assert steps == ["4"]
    assert "(test)" in capsys.readouterr().out


def test_a_run_is_not_resumed_with_other_images(tmp_path):
    """As many of them, of the same names."""
    for split, name, shade in itertools.product(("train", "val"), "ab", range(8)):
        path = tmp_path / "set" / split / name / f"{shade}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (shade,) * 3).save(path)
    fields = {"data.name": f"folder:{tmp_path}/set", "num_classes": 2, "epochs": 1}
    fields |= {"batch_size": 8, "eval_batch_size": 16}
    config = configured(runs.DENSE, PLAIN, **fields)
    workdir = tmp_path / "run"
    runs.train(config, workdir)
    shutil.copytree(tmp_path / "set", tmp_path / "copy")
    shutil.rmtree(tmp_path / "set")
    (tmp_path / "copy").rename(tmp_path / "set")  # brought anew
    runs.train(config, workdir)
    val = tmp_path / "set" / "val" / "b"
    shutil.copy(val / "0.bmp", val / "1.bmp")
    there = {path: path.read_bytes() for path in workdir.glob("*.json")}
    message = r"folder:.*set, whose validation set has digest \w{16}, but the run in"
    with pytest.raises(InputError, match=message):
        runs.train(config, workdir)
    assert there == {path: path.read_bytes() for path in workdir.glob("*.json")}


@pytest.mark.slow
def test_a_training_that_stops_for_damaged_images_ends_as_documented(tmp_path):
    """Every tenth image is torn; processes read ahead while steps run and end."""
    Image.new("RGB", (16, 16)).save(tmp_path / "whole.jpg")
    full = (tmp_path / "whole.jpg").read_bytes()
    for split, count in (("train", 400), ("val", 40)):
        for i in range(count):
            path = tmp_path / "set" / split / "ab"[i % 2] / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            torn = split == "train" and i % 10 == 0
            path.write_bytes(full[:200] if torn else full)
    fields = {"data.name": f"folder:{tmp_path}/set", "batch_size": 16}
    fields |= {"num_classes": 2, "data.workers": 2, "data.threads": 2}
    config = configured(PLAIN, NO_REDUCTION, **fields)
    with pytest.raises(
        InputError, match="^5 of 400 images cannot be read, more than 1%; the"
    ):
        runs.train(config, tmp_path / "run")
    assert read_metrics(tmp_path / "run")  # of steps before
    assert not workers() and not shared_memory()
