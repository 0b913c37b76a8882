"""--checkpoint, in the commands that can read either checkpoint of a run."""

import json

import jax
import numpy as np
import pytest

from configs import quickstart
from imagepiece_jax import export
from imagepiece_jax.common import parallel
from imagepiece_jax.evaluate import __main__ as evaluate
from imagepiece_jax.evaluate import accuracy
from imagepiece_jax.inference import jax_export
from imagepiece_jax.models import summary
from imagepiece_jax.training import from_config
from imagepiece_jax.training.checkpoint import Checkpoints
from tests.command import call

BEST, LATEST = 3, 4


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run in which every weight is the number of the step it was saved at."""
    path, config = tmp_path_factory.mktemp("run"), quickstart.get_config()
    size = {"model.depth": 2, "model.embed_dim": 8, "model.num_heads": 2}
    blocks = {"reduction.merge_blocks": (0,), "reduction.prune_blocks": (1,)}
    config.update_from_flattened_dict(size | blocks)
    (path / "config.json").write_text(json.dumps(config.to_dict()))
    shapes = summary.shapes(from_config.model(config), config.image_size)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    checkpoints = Checkpoints(path)
    checkpoints.save_best(BEST, jax.tree.map(lambda zero: zero + BEST, zeros), {})
    checkpoints.save(LATEST, jax.tree.map(lambda zero: zero + LATEST, zeros), {})
    checkpoints.close()
    return path


@pytest.fixture
def computed(monkeypatch):
    """The variables that commands compute with, in place of computing."""
    found = []

    def serialized(model, variables, image_size, **options):
        found.append(variables)
        return b""

    def passed(step, variables, batches):
        found.append(parallel.unreplicate(variables))
        return accuracy.EvalResult(50.0, 100.0, 1.0, 2, 8.0, {})

    monkeypatch.setattr(jax_export, "serialized", serialized)
    monkeypatch.setattr(accuracy, "evaluate", passed)
    return found


@pytest.mark.parametrize("command", [export, evaluate], ids=["export", "evaluate"])
@pytest.mark.parametrize(
    "words, step",
    [([], BEST), (["--checkpoint=best"], BEST), (["--checkpoint=latest"], LATEST)],
    ids=["default", "best", "latest"],
)
def test_the_checkpoint_is_that_of_the_flag(
    run, computed, tmp_path, command, words, step
):
    out = [f"--out={tmp_path / 'model.jax'}"] if command is export else []
    ended = call(command.main, f"--weights={run}", *out, *words)
    assert ended.status == 0, ended
    (variables,) = computed
    assert all((np.asarray(leaf) == step).all() for leaf in jax.tree.leaves(variables))
