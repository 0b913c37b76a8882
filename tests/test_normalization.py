"""Images as a model was trained with them, from every command and the API.

The model classifies by color alone and its weights leave no tie, so that another
mean or deviation changes what it says. What is expected is computed in NumPy.
"""

import contextlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imagepiece_jax
from imagepiece_jax.commands import evaluate, export, visualize
from imagepiece_jax.config.run import RunConfig
from imagepiece_jax.errors import InputError
from imagepiece_jax.models import timm_tensors
from imagepiece_jax.models.config import MEAN, STD
from imagepiece_jax.models.variables import variable_shapes
from imagepiece_jax.training.cluster.checkpoint import Checkpoints
from imagepiece_jax.training.initial_weights import InitialWeights
from tests import runs
from tests.command import call, sentence, start
from tests.models import tiny
from tests.oracles import log_softmax, softmax
from tests.pictures import write_csv
from tests.runs import ROOT
from tests.visualize.traces import read_traces

HALF = (0.5, 0.5, 0.5)
HALVES = {"mean": HALF, "std": HALF}
MISSING = "config.init.weights: "
FLAGS = ["--mean", *HALF, "--std", *HALF]
OF_CONFIG = ["--config.model.mean=.5,.5,.5", "--config.model.std=.5,.5,.5"]
NOTE = "does not say how its images were normalized: ImageNet's mean and standard dev"
# Some reduction, for runs.
FIELDS = {
    "model.stem": "patch",
    "model.patch_size": 8,
    "model.embed_dim": 64,
    "model.num_heads": 4,
    "model.depth": 2,
    "reduction": "imagepiece:merge_blocks=():prune_blocks=(0,):keep_rate=0.5",
}
WORDS = ["--config", f"{ROOT}/configs/quickstart.py"]
WORDS += [f"--config.{name}={value}" for name, value in FIELDS.items()]
REDUCED = "imagepiece:merge_blocks=():prune_blocks=(0,):keep_rate=.5"
NAMED = ["--name", "vit_mini", "--reduction", REDUCED]


def config(**fields):
    return runs.configured(FIELDS, **fields)


@pytest.fixture(scope="module")
def model():
    return RunConfig.from_config(config()).create_model()


@pytest.fixture(scope="module")
def variables(model):
    return tiny.fill(variable_shapes(model))


@pytest.fixture(scope="module")
def folder(variables, tmp_path_factory):
    """w.npz, own/ and run/ with halves, 40 images in set.csv."""
    folder = tmp_path_factory.mktemp("normalization")
    tensors = timm_tensors.to_timm(variables)
    np.savez(folder / "w.npz", **tensors)
    own = imagepiece_jax.load(folder / "w.npz", name="vit_mini", **HALVES)
    imagepiece_jax.save(folder / "own", own)
    settled = config(**{f"model.{name}": value for name, value in HALVES.items()})
    settled.data.name = f"csv:{folder}/set.csv"
    (folder / "run").mkdir()
    (folder / "run" / "config.json").write_text(
        json.dumps(RunConfig.from_config(settled).to_dict())
    )
    checkpoints = Checkpoints(folder / "run")
    checkpoints.save(1, variables, {}, "best")
    checkpoints.save(1, variables, {})
    checkpoints.close()
    pixels = np.random.default_rng(0).integers(0, 99, (40, 16, 16, 3)).astype(np.uint8)
    np.save(folder / "pixels.npy", pixels)
    write_csv(folder, pixels, np.arange(40) % 10)
    return folder


@pytest.fixture(scope="module")
def expected(model, variables, folder):
    """mean -> (logits, mean loss) of the images, normalized by NumPy."""
    pixels = np.load(folder / "pixels.npy")
    labels = np.arange(40) % 10

    def by_numpy(mean, std):
        images = (pixels.astype(np.float64) / 255 - mean) / np.array(std)
        images = jnp.asarray(images, jnp.float32)
        logits = np.asarray(tiny.jit(model.apply)(variables, images).logits, float)
        return logits, -log_softmax(logits)[np.arange(40), labels].mean()

    found = {"halves": by_numpy(HALF, HALF), "imagenet": by_numpy(MEAN, STD)}
    losses = [loss for _, loss in found.values()]
    assert abs(losses[0] - losses[1]) > 0.05, "the two must differ clearly"
    return found


@pytest.mark.parametrize(
    "weights_of, words, which, noted",
    [
        ("w.npz", NAMED, "imagenet", True),
        ("w.npz", [*NAMED, *FLAGS], "halves", False),
        ("own", NAMED[2:], "halves", False),
        ("run", [], "halves", False),
    ],
)
def test_evaluate(tmp_path, folder, expected, weights_of, words, which, noted):
    out = tmp_path / "result.json"
    words = [folder / weights_of, f"csv:{folder}/set.csv", *words, "--json", out]
    said = pytest.warns(UserWarning, match=NOTE) if noted else contextlib.nullcontext()
    with said:
        call(evaluate.main, *words).ok()
    found = json.loads(out.read_text())
    assert found["loss"] == pytest.approx(expected[which][1], rel=1e-4)


def test_a_run_is_loaded_and_predicted_with_as_it_was_trained(folder, expected):
    pixels = np.load(folder / "pixels.npy")
    quick = {"dtype": "float32"}
    quick["compiler_options"] = {"xla_backend_optimization_level": 0}
    run = imagepiece_jax.load(folder / "run", reduction="none").model
    assert (run.mean, run.std) == (HALF, HALF)
    full = imagepiece_jax.load(folder / "run").model
    own = RunConfig.from_config(config()).create_model()
    assert full.plan[0].mlp_tokens == own.plan[0].mlp_tokens < 5
    predictor = imagepiece_jax.Predictor(
        imagepiece_jax.load(folder / "run"), top=10, batch_size=40, **quick
    )
    logits = expected["halves"][0]
    found = np.asarray(predictor.program(pixels))
    np.testing.assert_allclose(found, logits, atol=1e-4)
    shares = softmax(logits[0])
    best = predictor(pixels[0])
    assert [p.index for p in best] == np.argsort(-shares).tolist()
    assert best[0].probability == pytest.approx(shares.max(), rel=1e-4)
    with pytest.raises(InputError, match=r"images is uint8 \[0, 16, 3\]; "):
        predictor(np.zeros((0, 16, 3), np.uint8))
    assert predictor([]) == []


def test_export_takes_the_model_of_the_run(tmp_path, folder):
    call(export.main, folder / "run", tmp_path / "m.onnx").quiet()
    facts = json.loads((tmp_path / "m.onnx.json").read_text())
    assert facts["normalization"]["mean"] == facts["normalization"]["std"] == [0.5] * 3
    assert facts["model"]["mean"] == [0.5] * 3
    assert "prune_blocks=(0,)" in facts["method"]


def test_visualize_sees_what_the_model_sees(tmp_path, folder, expected):
    """The confidence that is drawn is that of the right normalization."""
    of_own = NAMED[2:]
    for name, flags in (("own", of_own), ("w.npz", [*NAMED, *FLAGS]), ("run", [])):
        out = tmp_path / name
        words = [folder / name, folder / "0.png", "--out", out, *flags]
        ended = call(visualize.main, *words)
        assert ended.status == 0, ended
        _, (traced,) = read_traces(out)
        shares = softmax(expected["halves"][0][0])
        assert traced["top"][0] == shares.argmax()
        assert traced["confidence"][0] == pytest.approx(shares.max(), rel=1e-3)


def test_fields_of_the_run_can_be_changed_deliberately(
    tmp_path, folder, expected, variables
):
    """Its reduction may be another: all tokens are kept here."""
    out = tmp_path / "result.json"
    words = [folder / "run", f"csv:{folder}/set.csv", "--reduction", "none"]
    call(evaluate.main, *words, "--json", out).ok()
    images = jnp.asarray(2 * np.load(folder / "pixels.npy") / 255 - 1, jnp.float32)
    dense = RunConfig.from_config(config()).create_dense()
    logits = tiny.logits(dense)(variables, images)
    losses = -jax.nn.log_softmax(logits)[np.arange(40), np.arange(40) % 10]
    found = json.loads(out.read_text())["loss"]
    assert found == pytest.approx(float(losses.mean()), rel=1e-4)
    assert found != pytest.approx(expected["halves"][1], rel=1e-3)


def run_config(folder, **fields):
    more = {"init.weights": "", "teacher.weights": ""}
    return config(**(more | {k: str(folder / v) for k, v in fields.items()}))


def initial(made):
    return InitialWeights(RunConfig.from_config(made))


@pytest.mark.parametrize(
    "fields, mean, taken",
    [
        ({}, MEAN, None),
        ({"init.weights": "w.npz"}, MEAN, "ImageNet's"),
        ({"init.weights": "own"}, HALF, None),
        ({"init.weights": "run"}, HALF, None),
        ({"teacher.weights": "run"}, HALF, None),
        ({"init.weights": "own", "teacher.weights": "w.npz"}, HALF, "own's"),
        ({"init.weights": "w.npz", "teacher.weights": "own"}, HALF, "own's"),
    ],
)
def test_a_new_run_settles_on_what_it_starts_from(
    tmp_path, folder, capsys, fields, mean, taken
):
    made = run_config(folder, **fields)
    images = initial(made).normalization(tmp_path)
    notes = capsys.readouterr().out.splitlines()
    assert len(notes) == (taken is not None)
    for line in notes:
        assert line.startswith(
            f"note: {folder / 'w.npz'} does not say how its images were"
        )
        assert f"{taken} mean and standard deviation are taken; mean and" in line
    assert images["mean"] == mean
    assert (images["std"] == HALF) == (mean == HALF)
    made.model.update(images)
    again = run_config(folder, **fields)
    (tmp_path / "config.json").write_text(
        json.dumps(RunConfig.from_config(made).to_dict())
    )
    (tmp_path / "checkpoints" / "latest" / "1").mkdir(parents=True)
    for path in ("init", "teacher"):  # gone by now
        again[path].weights = "gone.npz"
    assert initial(again).normalization(tmp_path) == images
    assert capsys.readouterr().out == ""


def test_a_teacher_of_other_images_leaves_the_students_alone(tmp_path, folder):
    """Only a start from nothing takes the images of a model that it distils."""
    fields = {"init.weights": "w.npz", "teacher.weights": "own"}
    for chosen, mean in ((fields, MEAN), ({"teacher.weights": "own"}, HALF)):
        made = run_config(folder, **chosen)
        made.distill.kind = "hard"
        assert initial(made).normalization(tmp_path)["mean"] == mean


def said_of(tmp_path, *words):
    """What train.py prints, and the mistake that it ends with before it compiles."""
    words = [*WORDS, *words, f"--workdir={tmp_path}/run"]
    ended = start("train.py", *words, imported=True)
    return ended.out, sentence(ended)


def test_a_run_keeps_its_normalization(tmp_path):
    """It is compared, and ends only at weights that are not there."""
    fields = {
        "init.weights": "no.npz",
        "model.mean": MEAN,
        "model.std": STD,
    }
    made = config(**fields)
    begun = RunConfig.from_config(made).to_dict()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(begun))
    (tmp_path / "run" / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n')
    words = ["--config.init.weights=no.npz"]
    assert said_of(tmp_path, *words)[1].startswith(MISSING)
    words += OF_CONFIG
    assert said_of(tmp_path, *words)[1].startswith("config.model.mean is ")
