"""Images as a model was trained with them.

The model classifies by color alone and without ties, so another mean or deviation
changes its answer. commands/test_evaluate.py has the loss of another mean.
"""

import contextlib
import json

import jax.numpy as jnp
import numpy as np
import pytest

import imagepiece_jax
from imagepiece_jax.models.config import IMAGENET_MEAN
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.training.cluster.checkpoint import Checkpoints
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.training.initial_weights import InitialWeights
from imagepiece_jax.weights.save import save
from tests.helpers import small_runs, tiny_vit
from tests.helpers.oracles import softmax

HALF = (0.5, 0.5, 0.5)
# Some reduction, for runs.
FIELDS = {
    "model.stem": "patch",
    "model.patch_size": 8,
    "model.embed_dim": 64,
    "model.num_heads": 4,
    "model.depth": 2,
    "reduction": "imagepiece:merge_blocks=():prune_blocks=(0,):keep_rate=0.5",
}


def run_config(**fields):
    return RunConfig.from_config(small_runs.quickstart_config(FIELDS, **fields))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Weights w/, own/ and run/; the last two have halves."""
    folder = tmp_path_factory.mktemp("normalization")
    halves = run_config(**{"model.mean": HALF, "model.std": HALF})
    model = halves.create_dense_model()
    variables = tiny_vit.variables(model)
    save(Pretrained(run_config().create_model(), variables), folder / "w")
    save(Pretrained(model, variables), folder / "own")
    (folder / "run").mkdir()
    (folder / "run" / "config.json").write_text(json.dumps(halves.to_dict()))
    with contextlib.closing(Checkpoints(folder / "run")) as checkpoints:
        checkpoints.save(1, {"batch_stats": {}, "ema": {}} | variables, {}, "best")
    return folder


def test_a_loaded_run_predicts_as_trained(folder):
    vit = imagepiece_jax.load(folder / "run")
    assert (vit.config.mean, vit.config.std) == (HALF, HALF)
    model = run_config().create_model()
    assert vit.model.plan[0].mlp_tokens == model.plan[0].mlp_tokens < 5
    pixels = np.random.default_rng(0).integers(0, 99, (40, 16, 16, 3)).astype(np.uint8)
    images = jnp.asarray((pixels / 255 - HALF) / HALF, jnp.float32)
    logits = np.asarray(tiny_vit.logits(model)(vit.variables, images), float)
    options = {"dtype": "float32", "batch_size": 40}
    predictor = imagepiece_jax.Predictor(vit, top=10, **options)
    np.testing.assert_allclose(np.asarray(predictor.program(pixels)), logits, atol=1e-4)
    shares = softmax(logits[0])
    best = predictor(pixels[0])
    assert [p.index for p in best] == np.argsort(-shares).tolist()
    assert best[0].probability == pytest.approx(shares.max(), rel=1e-4)


@pytest.mark.parametrize(
    "fields, mean",
    [
        ({}, IMAGENET_MEAN),
        ({"init.weights": "run"}, HALF),
        ({"teacher.weights": "run"}, IMAGENET_MEAN),
        ({"init.weights": "own", "teacher.weights": "w"}, HALF),
        ({"init.weights": "w", "teacher.weights": "own"}, IMAGENET_MEAN),
    ],
)
def test_new_runs_take_the_weights_normalization(tmp_path, folder, fields, mean):
    """tests/training/test_initial_weights.py has a resumed run."""
    fields = {name: str(folder / path) for name, path in fields.items()}
    completed = InitialWeights(run_config(**fields), tmp_path).complete_config()
    assert completed.model.mean == mean
    assert (completed.model.std == HALF) == (mean == HALF)
