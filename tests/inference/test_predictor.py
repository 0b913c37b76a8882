import concurrent.futures
import itertools

import numpy as np
import pytest
from PIL import Image

import imagepiece_jax
from imagepiece_jax.errors import InputError
from imagepiece_jax.inference import optimize
from imagepiece_jax.inference.predictor import Prediction
from imagepiece_jax.models.config import IMAGENET_MEAN, IMAGENET_STD
from tests.helpers import tiny_vit
from tests.helpers.oracles import softmax
from tests.helpers.picture_files import noise, write_images
from tests.helpers.refused_calls import refused

NAMES = [f"class {i}" for i in range(tiny_vit.CLASSES)]
QUICK = {"compiler_options": {"xla_backend_optimization_level": 0}, "dtype": "float32"}


@pytest.fixture(scope="module")
def trained():
    return tiny_vit.pretrained(depth=1)


@pytest.fixture(scope="module")
def pictures():
    return noise(3, tiny_vit.SIDE, tiny_vit.SIDE)


@pytest.fixture(scope="module")
def predictor(trained):
    options = {"labels": NAMES, "top": 3, "batch_size": 2} | QUICK
    return imagepiece_jax.Predictor(trained, **options)


def run_logits(vit, pixels):
    """The model's logits, float64, of pixels normalized by hand."""
    normalized = (pixels / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    run = tiny_vit.compiled(vit.model.apply)
    return np.float64(run(vit.variables, np.float32(normalized)).logits)


def test_predictions_of_arrays_and_files(trained, predictor, pictures, tmp_path):
    """Three images in batches of two, the most probable class first."""
    (file,) = write_images(tmp_path, pictures[2:])
    images = [pictures[0], Image.fromarray(pictures[1]), file]
    probabilities = softmax(run_logits(trained, pictures))
    predictions = predictor(images)
    for row, predicted in zip(probabilities, predictions, strict=True):
        order = np.argsort(-row)[:3].tolist()
        expected = [(NAMES[i], i, row[i]) for i in order]
        assert close(predicted, [Prediction(*entry) for entry in expected])
    assert close(predictor(images[0]), predictions[0])
    assert predictor([]) == []


def close(predictions, expected):
    """Whether predictions are equal up to the rounding of another batch size."""
    for a, b in zip(predictions, expected, strict=True):
        if a[:2] != b[:2] or abs(a.probability - b.probability) >= 1e-5:
            return False
    return True


def test_endless_images_and_folders_are_predicted(predictor, pictures, tmp_path):
    expected = predictor(pictures)
    streamed = list(itertools.islice(predictor.stream(itertools.cycle(pictures)), 7))
    assert all(map(close, streamed, [expected[i % 3] for i in range(7)]))
    write_images(tmp_path, pictures)
    assert all(map(close, predictor(tmp_path), expected))


def test_images_are_read_at_once(predictor, pictures, tmp_path):
    """A camera fills one buffer again and again, and files are closed."""
    expected = predictor(pictures)
    buffer = np.empty_like(pictures[0])
    names = write_images(tmp_path, pictures)

    def frames():
        for picture in [*pictures] * 2:
            buffer[:] = picture
            yield buffer

    def open_files():
        for name in names:
            with Image.open(name) as image:
                yield image

    assert all(map(close, predictor(frames()), expected * 2))
    assert all(map(close, predictor(open_files()), expected))


def test_a_bad_file_loses_no_other_image(predictor, pictures, tmp_path):
    expected = predictor(pictures)
    (tmp_path / "torn.png").write_bytes(b"no image")
    bad = ["no.png", tmp_path / "torn.png"]
    results = predictor([pictures[0], bad[0], pictures[1], bad[1], pictures[2]])
    assert [isinstance(result, InputError) for result in results] == [0, 1, 0, 1, 0]
    assert all(map(close, results[::2], expected))
    assert str(results[1]).startswith("no.png cannot be read (")
    assert str(results[3]).endswith("torn.png cannot be read (no known image format)")


def test_a_value_that_is_no_image_is_refused(predictor):
    image = np.zeros((20, 20, 3), np.uint8)
    for images, message in (
        (np.zeros((1, 20, 20, 3)), "images is float64 [20, 20, 3]"),
        ([image, image[..., 0]], "images is uint8 [20, 20]"),
        ([image, None], "images is NoneType"),
        ("no.png", "no.png cannot be read (No such file or directory)"),
    ):
        with refused(message):
            predictor(images)


def test_simultaneous_calls_get_their_own_results(predictor, pictures):
    expected = predictor(pictures)

    def ask(number):
        result, error = predictor([pictures[number % 3], f"no{number}.png"])
        return close(result, expected[number % 3]) and f"no{number}." in str(error)

    with concurrent.futures.ThreadPoolExecutor(40) as callers:
        assert all(callers.map(ask, range(200)))


def test_batch_sizes_are_compiled_once_when_needed(trained, pictures, monkeypatch):
    sizes = []
    make_compiler = optimize.make_program_compiler

    def count_sizes(*args, **options):
        compiled = make_compiler(*args, **options)
        return lambda batch_size: sizes.append(batch_size) or compiled(batch_size)

    monkeypatch.setattr(optimize, "make_program_compiler", count_sizes)
    predict = imagepiece_jax.Predictor(trained, batch_size=12, **QUICK)
    assert predict.batch_sizes == (1, 8, 12)
    predict(pictures[0])
    predict(pictures)
    assert sizes == [1, 8]
    predict.warm_up()
    assert sizes == [1, 8, 12]
    assert predict.program.batch_size == 12


def test_images_have_the_weights_crop(trained, traced_once):
    """DeiT's crop would not resize these images."""
    prepared = {"crop": 1.0, "crop_mode": "squash", "interpolation": "bilinear"}
    vit = trained.with_preprocessing(**prepared)
    options = {"batch_size": 1, "top": 7} | QUICK
    predict = imagepiece_jax.Predictor(vit, **options)
    pixels = noise(40, 30)
    size = (tiny_vit.SIDE, tiny_vit.SIDE)
    small = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)
    assert predict(pixels) == predict(np.asarray(small))


def test_several_labels_have_independent_probabilities(trained, predictor, pictures):
    """They are sigmoids of the logits, in the order of a softmax."""
    vit = tiny_vit.with_problem_type(trained, "multi_label_classification")
    several = imagepiece_jax.Predictor(vit, top=tiny_vit.CLASSES, batch_size=1, **QUICK)
    (logits,) = run_logits(trained, pictures[:1])
    predictions = several(pictures[0])
    single = predictor(pictures[0])
    assert [p.index for p in predictions[:3]] == [p.index for p in single]
    for prediction in predictions:
        expected = 1 / (1 + np.exp(-logits[prediction.index]))
        assert prediction.probability == pytest.approx(expected, rel=1e-4)
    for kind in ("regression", "projection"):
        vit = tiny_vit.with_problem_type(trained, kind)
        with refused(f"problem_type is '{kind}'"):
            imagepiece_jax.Predictor(vit, labels=NAMES)
    with refused("labels"):  # a thousand names for seven classes
        imagepiece_jax.Predictor(trained, labels="imagenet")
