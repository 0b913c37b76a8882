"""Images as a model was trained with them, from every command and the API.

The model classifies by color alone and without ties, so another mean or deviation
changes its answer. NumPy computes the expected answers.
"""

import contextlib
import json

import jax.numpy as jnp
import numpy as np
import pytest

import imagepiece_jax
from imagepiece_jax.commands import evaluate
from imagepiece_jax.models.config import IMAGENET_MEAN, IMAGENET_STD
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.variables import variable_shapes
from imagepiece_jax.training.cluster.checkpoint import Checkpoints
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.training.initial_weights import InitialWeights
from imagepiece_jax.weights.save import save
from tests.helpers import small_runs, tiny_vit
from tests.helpers.oracles import log_softmax, softmax
from tests.helpers.picture_files import write_csv
from tests.helpers.run_command import call
from tests.helpers.small_states import StoredState

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
REDUCED = "imagepiece:merge_blocks=():prune_blocks=(0,):keep_rate=.5"
TYPED = ["--reduction", REDUCED]


def config(**fields):
    return small_runs.quickstart_config(FIELDS, **fields)


@pytest.fixture(scope="module")
def model():
    return RunConfig.from_config(config()).create_model()


@pytest.fixture(scope="module")
def variables(model):
    return tiny_vit.fill(variable_shapes(model))


@pytest.fixture(scope="module")
def folder(model, variables, tmp_path_factory):
    """w/, own/ and run/, the last two with halves; 40 images in set.csv.

    w.npz has the tensors of both, without a config.
    """
    folder = tmp_path_factory.mktemp("normalization")
    tiny_vit.write(folder / "w.npz", variables)
    halves = config(**{"model.mean": HALF, "model.std": HALF})
    dense = RunConfig.from_config(halves).create_dense_model()
    save(Pretrained(model, variables), folder / "w")
    save(Pretrained(dense, variables), folder / "own")
    halves.data.name = f"csv:{folder}/set.csv"
    (folder / "run").mkdir()
    written = json.dumps(RunConfig.from_config(halves).to_dict())
    (folder / "run" / "config.json").write_text(written)
    with contextlib.closing(Checkpoints(folder / "run")) as checkpoints:
        for kind in ("best", "latest"):
            checkpoints.save(1, StoredState(**variables), {}, kind)
    pixels = np.random.default_rng(0).integers(0, 99, (40, 16, 16, 3)).astype(np.uint8)
    np.save(folder / "pixels.npy", pixels)
    write_csv(folder, pixels, np.arange(40) % 10)
    return folder


@pytest.fixture(scope="module")
def expected(model, variables, folder):
    pixels = np.load(folder / "pixels.npy")
    labels = np.arange(40) % 10

    def classify_in_numpy(mean, std):
        images = (pixels.astype(np.float64) / 255 - mean) / np.array(std)
        images = jnp.asarray(images, jnp.float32)
        logits = np.asarray(tiny_vit.jit(model.apply)(variables, images).logits, float)
        return logits, -log_softmax(logits)[np.arange(40), labels].mean()

    answers = {
        "halves": classify_in_numpy(HALF, HALF),
        "imagenet": classify_in_numpy(IMAGENET_MEAN, IMAGENET_STD),
    }
    losses = [loss for _, loss in answers.values()]
    assert abs(losses[0] - losses[1]) > 0.05, "the two must differ clearly"
    return answers


@pytest.mark.parametrize(
    "weights, words, which",
    [
        ("w", TYPED, "imagenet"),
        ("w.npz", [*TYPED, "--config", "{}/own"], "halves"),
        ("run", [], "halves"),
    ],
)
def test_evaluate_normalizes(tmp_path, folder, expected, weights, words, which):
    out = tmp_path / "result.json"
    words = [word.format(folder) for word in words]
    words = [folder / weights, f"csv:{folder}/set.csv", *words, "--json", out]
    call(evaluate.main, *words).ok()
    result = json.loads(out.read_text())
    assert result["loss"] == pytest.approx(expected[which][1], rel=1e-4)


def test_a_loaded_run_predicts_as_trained(folder, expected):
    pixels = np.load(folder / "pixels.npy")
    options = {"dtype": "float32"}
    options["compiler_options"] = {"xla_backend_optimization_level": 0}
    vit = imagepiece_jax.load(folder / "run")
    assert (vit.config.mean, vit.config.std) == (HALF, HALF)
    model = RunConfig.from_config(config()).create_model()
    assert vit.model.plan[0].mlp_tokens == model.plan[0].mlp_tokens < 5
    predictor = imagepiece_jax.Predictor(vit, top=10, batch_size=40, **options)
    logits = expected["halves"][0]
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
    run = RunConfig.from_config(config(**fields))
    completed = InitialWeights(run, tmp_path).complete_config()
    assert completed.model.mean == mean
    assert (completed.model.std == HALF) == (mean == HALF)
