import json

import jax
import numpy as np
import pytest

import imagepiece_jax
from imagepiece_jax.commands import describe, evaluate
from imagepiece_jax.data.normalize import normalize
from tests.helpers import tiny_vit
from tests.helpers.picture_files import write_csv
from tests.helpers.run_command import call, sentence, start

REDUCTION = "evit:keep_rate=0.5:blocks=(0,)"


pytestmark = pytest.mark.usefixtures("evaluations_compiled_once")


@pytest.fixture(scope="module")
def vit():
    """Its mean and deviation are not ImageNet's."""
    fields = {"mean": (0.1, 0.5, 0.9), "std": (0.5, 0.5, 0.5), "image_size": 16}
    return tiny_vit.pretrained(REDUCTION, num_classes=10, depth=1, **fields)


@pytest.fixture(scope="module")
def weights(vit, tmp_path_factory):
    return imagepiece_jax.save(vit, tmp_path_factory.mktemp("weights") / "tiny")


def test_a_file_is_described_by_a_given_config(vit, weights, tmp_path):
    file = tiny_vit.write(tmp_path / "own.npz", vit.variables)
    words = [file, f"--reduction={REDUCTION}"]
    ended = call(describe.main, *words, "--config", weights).quiet()
    assert ended.out == call(describe.main, weights).quiet().out
    assert "does not name its model" in sentence(call(describe.main, *words))


@pytest.fixture(scope="module")
def image_set(tmp_path_factory):
    """150 images of 16x16 with a CSV file: (folder, pixels, labels); 77 is damaged."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (150, 16, 16, 3), np.uint8)
    labels = rng.integers(0, 10, 150)
    write_csv(folder, pixels, labels)
    damaged = folder / "77.png"
    damaged.write_bytes(damaged.read_bytes()[:100])
    return folder, pixels, labels


@pytest.fixture
def words(weights, image_set):
    data = f"csv:{image_set[0]}/set.csv"
    return [weights, data, "--batch-size=64", "--workers=0"]


def run_evaluate(tmp_path, *words):
    out = tmp_path / "result.json"
    ended = call(evaluate.main, *words, "--json", out).ok()
    return ended, json.loads(out.read_text())


@pytest.fixture(scope="module")
def logits(vit, image_set):
    """The model's logits, one image at a time, float64 [150, 10]."""
    model = vit.model
    variables = vit.variables
    forward = tiny_vit.compiled(lambda image: model.apply(variables, image).logits)
    images = np.asarray(normalize(image_set[1], model.config.mean, model.config.std))
    return np.concatenate([forward(image[None]) for image in images], dtype=float)


def assert_metrics(result, logits, labels, points=1e-9):
    """Compare a result with NumPy's; points: how far accuracies may differ."""
    label_logits = logits[np.arange(len(labels)), labels][:, None]
    rank = (logits > label_logits).sum(axis=1)
    losses = np.log(np.exp(logits).sum(axis=1)) - label_logits[:, 0]
    accuracies = (100 * (rank < 1).mean(), 100 * (rank < 5).mean())
    assert result["images"] == len(labels)
    assert (result["acc1"], result["acc5"]) == pytest.approx(accuracies, abs=points)
    assert result["loss"] == pytest.approx(losses.mean(), rel=1e-4)


def test_every_readable_image_counts_once(tmp_path, logits, words, image_set, caplog):
    """149 is no multiple of 64, so the last batch is padded."""
    folder, _, labels = image_set
    ended, result = run_evaluate(tmp_path, *words)
    rest = np.arange(150) != 77
    assert_metrics(result, logits[rest], labels[rest])
    assert result["throughput"] > 0
    assert result["unreadable"] == 1
    assert f"acc1 {result['acc1']:.2f} %" in ended.out
    assert "unreadable images left out: 1" in ended.out
    assert f"{folder / '77.png'} cannot be read" in caplog.text


def test_a_limit_takes_evenly_spaced_images(tmp_path, logits, words, image_set):
    _, result = run_evaluate(tmp_path, *words, "--limit=70")
    taken = [round(149 * place / 69) for place in range(70)]
    assert 77 not in taken
    assert_metrics(result, logits[taken], image_set[2][taken])


def test_evaluate_runs_the_optimized_program(tmp_path, logits, words, image_set):
    words += ["--dtype=float32", "--optimized", "--gelu=tanh"]
    _, result = run_evaluate(tmp_path, *words)
    rest = np.arange(150) != 77
    assert_metrics(result, logits[rest], image_set[2][rest], points=1.5)  # two images
    assert result["dtype"] == "float32"


def test_doctor_without_its_device_prints_the_rest():
    ended = start("-m", "imagepiece_jax", "doctor", JAX_PLATFORMS="nowhere")
    assert ended.status == 1
    assert ended.lines[-1].startswith("error: Unable to initialize backend 'nowhere'")
    assert f"jax {jax.__version__}\n" in ended.out
