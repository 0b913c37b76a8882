"""--checkpoint and --averaged: which weights of a run commands read."""

import json
import shutil

import jax
import numpy as np
import pytest
from onnx import ModelProto
from PIL import Image

import imagepiece_jax
from imagepiece_jax.commands import evaluate, export, predict, visualize
from imagepiece_jax.common import parallel
from imagepiece_jax.config.run import RunConfig
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate import accuracy
from imagepiece_jax.inference import onnx_model as onnx_model_file
from imagepiece_jax.models.variables import variable_shapes
from imagepiece_jax.training.cluster.checkpoint import Checkpoints
from imagepiece_jax.weights import load
from tests import runs
from tests.command import call, sentence
from tests.models import tiny

BEST = 3
LATEST = 4
AVERAGED = 10  # more, in the averages


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run in which every weight is the number of the step it was saved at."""
    path = tmp_path_factory.mktemp("run")
    config = runs.configured(runs.SMALL, **{"model.embed_dim": 8})
    (path / "config.json").write_text(
        json.dumps(RunConfig.from_config(config).to_dict())
    )
    model = RunConfig.from_config(config).create_model()
    shapes = variable_shapes(model, config.image_size)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    checkpoints = Checkpoints(path)
    for kind, step in (("best", BEST), ("latest", LATEST)):
        state, ema = (
            jax.tree.map(lambda zero, value=value: zero + value, zeros)
            for value in (step, step + AVERAGED)
        )
        checkpoints.save(step, state | {"ema": ema}, {}, kind)
    checkpoints.close()
    return path


@pytest.fixture
def computed(monkeypatch):
    """The variables that commands compute with, in place of computing."""
    found = []

    def onnx_model(vit, **options):
        found.append(vit.variables)
        return ModelProto()

    def passed(step, variables, batches):
        found.append(parallel.unreplicate(variables))
        return accuracy.EvalResult(50.0, 100.0, 1.0, 2, 8.0, {})

    monkeypatch.setattr(onnx_model_file, "onnx_model", onnx_model)
    monkeypatch.setattr(accuracy, "evaluate", passed)
    return found


@pytest.mark.parametrize("command", [export, evaluate], ids=["export", "evaluate"])
@pytest.mark.parametrize(
    "words, step",
    [
        ([], BEST),
        (["--checkpoint=best"], BEST),
        (["--checkpoint=latest"], LATEST),
        (["--averaged"], BEST + AVERAGED),
        (["--averaged", "--checkpoint=latest"], LATEST + AVERAGED),
    ],
    ids=["default", "best", "latest", "averaged", "averaged-latest"],
)
def test_the_weights_are_those_of_the_flags(
    run, computed, tmp_path, command, words, step
):
    out = [f"--out={tmp_path / 'model.onnx'}"] if command is export else []
    ended = call(command.main, f"--weights={run}", *out, *words).ok()
    (variables,) = computed
    assert all((np.asarray(leaf) == step).all() for leaf in jax.tree.leaves(variables))
    if command is evaluate:
        assert ("  averaged weights  " in ended.out) == ("--averaged" in words)


def test_predict_visualize_and_load_read_the_averages(run, tmp_path, monkeypatch):
    variables = imagepiece_jax.load(run, checkpoint="latest", averaged=True).variables
    leaves = jax.tree.leaves(variables)
    assert all((np.asarray(leaf) == LATEST + AVERAGED).all() for leaf in leaves)
    read = []

    def load_as(weights, *args, **options):
        read.append((weights.source.checkpoint, weights.source.averaged))
        raise ZeroDivisionError

    monkeypatch.setattr(load, "load_as", load_as)
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    for command in (predict, visualize):
        for words in ([], ["--averaged"]):
            with pytest.raises(ZeroDivisionError):
                call(command.main, f"--weights={run}", tmp_path / "a.png", *words)
    # The best was chosen on images that may be among those of the figures.
    kinds = [("best", False), ("best", True), ("latest", False), ("latest", True)]
    assert read == kinds


def test_weights_without_averages_are_refused(run, tmp_path):
    config = json.loads((run / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"ema_decay": 0.0}))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"params": {"head": {"bias": np.zeros(10)}}}, {}, "best")
    checkpoints.close()
    with pytest.raises(InputError, match=f"run {tmp_path} has no averaged weights, as"):
        imagepiece_jax.load(tmp_path, averaged=True)
    tiny.write(tmp_path / "w.npz", tiny.variables(tiny.model()))
    words = [f"--weights={tmp_path}/w.npz", "--averaged", "--out=a.onnx"]
    said = f"weights file {tmp_path}/w.npz has no averaged weights; allowed: files with"
    assert sentence(call(export.main, *words)).startswith(said)


def test_a_run_that_was_not_evaluated_yet_has_its_latest_alone(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "best")
    assert sentence(call(evaluate.main, f"--weights={tmp_path}/run")) == (
        f"run {tmp_path}/run has no 'best' checkpoint yet; allowed: 'latest'; "
        "its first evaluation saves the best"
    )
