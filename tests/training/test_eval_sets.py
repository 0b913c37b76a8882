"""Evaluations that a config names: their turns, lines, checkpoint and command."""

import json
import re
import signal

import numpy as np
import pytest
from PIL import Image

from imagepiece_jax.commands import evaluate
from imagepiece_jax.config.run import RunConfig
from imagepiece_jax.errors import InputError, Stopped
from imagepiece_jax.evaluate import accuracy
from imagepiece_jax.input.registry import open_source
from imagepiece_jax.training.cluster.checkpoint import Progress
from imagepiece_jax.training.logging import read_metrics
from tests import runs
from tests.command import call, sentence
from tests.training.test_logging import events

pytestmark = pytest.mark.usefixtures("quickly_begun")
CLASSES = {"seven": 7, "two": 2}  # in another order than the digits
COUNT = 12


def configured(sets, best_set=""):
    """1,438 digits, 256 a step, 5 steps an epoch; one block."""
    fields = {"model.depth": 1, "model.stem": "patch", "warmup_epochs": 0.0}
    fields |= {"batch_size": 256, "epochs": 3, "eval_every_epochs": 1}
    config = runs.configured(runs.DENSE, **fields)
    config.eval.sets = sets
    config.eval.best_set = best_set
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Some digits of two classes as files, whose folders have words for names."""
    root = tmp_path_factory.mktemp("digits")
    source = open_source("digits", "val")
    labels = np.array([source.read(i)[1] for i in range(len(source))])
    for name, label in CLASSES.items():
        (root / "val" / name).mkdir(parents=True)
        for index in np.flatnonzero(labels == label)[: COUNT // 2]:
            image = Image.fromarray(source.read(int(index))[0])
            image.save(root / "val" / name / f"{index}.png")
    return root


def two_sets(folder):
    own = {"data": f"folder:{folder}", "every_epochs": 2, "classes": CLASSES}
    return configured({"val": {}, "real": own}, best_set="real")


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    """The folder of a run of two sets, and that of one stopped in their evaluation."""
    full = tmp_path_factory.mktemp("whole")
    resumed = tmp_path_factory.mktemp("resumed")
    with pytest.MonkeyPatch.context() as patch:
        runs.compile_once(patch)
        last = runs.train(two_sets(folder), full)
        passes = accuracy.evaluate_each
        evaluated = []

        def stop_in_third(*args):
            evaluated.append(args)
            if len(evaluated) == 3:  # val, then real and val again
                signal.raise_signal(signal.SIGTERM)
            return passes(*args)

        patch.setattr(accuracy, "evaluate_each", stop_in_third)
        with pytest.raises(Stopped, match="stopped at step 10"):
            runs.train(two_sets(folder), resumed)
        kinds = [line["kind"] for line in read_metrics(resumed)]
        assert kinds.count("eval/val") == 1
        assert "eval/real" not in kinds
        assert runs.train(two_sets(folder), resumed) == last
    return full, resumed, last


def test_each_set_is_evaluated_when_it_is_due(finished):
    full, _, last = finished
    lines = [line for line in read_metrics(full) if line["kind"] != "train"]
    found = [(line["kind"], line["step"], line["images"]) for line in lines]
    val = [("eval/val", step, 359) for step in (5, 10, 15)]
    real = [("eval/real", step, COUNT) for step in (10, 15)]
    assert found == [val[0], real[0], val[1], real[1], val[2]]
    assert {name: figures["acc1"] for name, figures in last.items()} == {
        line["kind"].removeprefix("eval/"): line["acc1"] for line in lines[-2:]
    }
    assert runs.computed(finished[1]) == runs.computed(full)  # the resumed one
    tags = set()
    for event in events(full):
        tags |= {value.tag for value in event.summary.value}
    assert {"eval/val/acc1", "eval/real/acc1", "eval/real/ema_acc1"} <= tags


def test_the_named_set_chooses_the_best(finished, capsys, folder):
    """Its lines say which step; a step without it chooses nothing."""
    full, _, _ = finished
    runs.train(two_sets(folder), full)
    table = capsys.readouterr().out
    real = {line["step"]: line["acc1"] for line in runs.lines(full, "eval/real")}
    step = max(real, key=lambda step: (real[step], -step))
    assert f"best         {real[step]:.2f} % at step {step} of real" in table
    assert f"of {COUNT} images" in table
    assert "of 359 images" in table
    assert (full / "checkpoints" / "best" / str(step)).exists()

    progress = Progress([], []).with_evaluation(1, {"val": {"acc1": 9}}, "real", "acc1")
    assert progress.best["step"] == 0
    assert progress.last == {"val": {"acc1": 9}}
    both = {"val": {"acc1": 1}, "real": {"acc1": 2}}
    progress = progress.with_evaluation(2, both, "real", "acc1")
    assert progress.best == {"step": 2, "acc1": 2}
    assert progress.last == both


def test_evaluate_knows_the_set_by_its_name(finished, tmp_path):
    """The newest checkpoint's figures of a run are those of its last evaluation."""
    full, _, last = finished
    words = ["--weights", full, "--checkpoint", "latest"]
    words += ["--json", tmp_path / "a.json"]
    for name, data in (("val", "digits"), ("real", "folder:")):
        assert call(evaluate.main, *words, "--set", name).status == 0
        found = json.loads((tmp_path / "a.json").read_text())
        assert found["acc1"] == last[name]["acc1"]
        assert found["data"].startswith(data)
        assert found["images"] == last[name]["images"]
    said = sentence(call(evaluate.main, *words, "--set", "v2"))
    assert said == "--set is 'v2'; allowed: real, val"
    both = call(evaluate.main, *words, "--set", "val", "--data", "digits")
    assert sentence(both) == "--set is given with --data; drop one"


@pytest.mark.parametrize(
    "sets, best, field, value",
    [
        ({"val": {}}, "real", "config.eval.best_set", "real"),
        ({}, "real", "config.eval.best_set", "real"),
        ({"val": {}, "real": {}}, "", "config.eval.best_set", ""),
        ({"": {}}, "", "config.eval.sets", ""),
        ({"a/b": {}}, "", "config.eval.sets", "a/b"),
        ({"val": {"every": 1}}, "", "config.eval.sets.val.every", "every"),
        ({"val": {"every_epochs": 0}}, "", "config.eval.sets.val.every_epochs", 0),
        ({"val": {"data": 3}}, "", "config.eval.sets.val.data", 3),
        ({"val": {"classes": 3}}, "", "config.eval.sets.val.classes", 3),
        ({"val": 3}, "", "config.eval.sets.val", 3),
    ],
)
def test_a_mistake_is_named(sets, best, field, value):
    with pytest.raises(InputError) as error:
        RunConfig.from_config(configured(sets, best))
    assert error.value.field == field
    assert value in (None, error.value.value)


@pytest.mark.parametrize(
    "own, said",
    [
        ({"data": "csv:none.csv"}, "none.csv"),
        ({"data": "folder:none"}, "none"),
        ({"data": "nothing"}, "config.eval.sets.real"),
        ({"classes": None}, "folder .* 2 classes"),  # of ten
        ({"classes": {"seven": 7}}, "has class 'two'"),
        ({"classes": {"seven": 7, "two": 10}}, "real.classes is"),
    ],
)
def test_images_that_do_not_fit_are_a_mistake(folder, tmp_path, own, said):
    usual = {"data": f"folder:{folder}", "classes": CLASSES}
    config = configured({"val": {}, "real": usual | own}, "real")
    with pytest.raises(InputError, match=said) as error:
        runs.train(config, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_other_class_names_are_a_mistake(tmp_path):
    rows = [f"{i}.png,{i},val,digit {i}" for i in range(10)]
    (tmp_path / "set.csv").write_text("\n".join(["filename,label,split,class", *rows]))
    for i in range(10):
        Image.new("RGB", (16, 16)).save(tmp_path / f"{i}.png")
    said = re.escape("digits: class 0 is '0', but 'digit 0' in csv:")
    with pytest.raises(InputError, match=said):
        config = configured({"real": {"data": f"csv:{tmp_path / 'set.csv'}"}})
        runs.train(config, tmp_path / "run")
