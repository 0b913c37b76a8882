"""Predictions of all kinds of images, and the errors of those that are none."""

import concurrent.futures
import dataclasses
import io
import itertools
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import imagepiece_jax
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.deploy.inference import optimize
from imagepiece_jax.deploy.inference import predictor as api
from imagepiece_jax.deploy.pictures import as_source
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.config import MEAN, STD
from tests.models import tiny
from tests.oracles import softmax
from tests.refused import refused

NAMES = [f"class {i}" for i in range(tiny.CLASSES)]
QUICK = {"compiler_options": {"xla_backend_optimization_level": 0}}
QUICK |= {"dtype": "float32"}


@pytest.fixture(scope="module")
def predictor(trained):
    options = {"labels": NAMES, "top": 3, "batch_size": 2} | QUICK
    return imagepiece_jax.Predictor(trained, **options)


def test_predictions_of_arrays_pictures_and_files(
    trained, predictor, pictures, tmp_path
):
    """Three images in batches of two: probabilities by hand, most probable first."""
    Image.fromarray(pictures[2]).save(tmp_path / "2.png")
    images = [pictures[0], Image.fromarray(pictures[1]), tmp_path / "2.png"]
    normalized = (pictures / 255 - np.array(MEAN)) / np.array(STD)
    run = tiny.compiled(trained.model.apply)
    logits = np.float64(run(trained.variables, np.float32(normalized)).logits)
    odds = softmax(logits)
    found = predictor(images)
    assert len(found) == 3
    for row, got in zip(odds, found, strict=True):
        order = np.argsort(-row)[:3]
        assert [p.index for p in got] == order.tolist()
        assert [p.label for p in got] == [NAMES[i] for i in order]
        assert [p.probability for p in got] == pytest.approx(row[order], rel=1e-4)
    assert close(predictor(images[0]), found[0])
    assert predictor([]) == []


def test_arrays_are_taken_as_pictures_of_their_pixels(predictor):
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 20, 3), np.uint8)
    images = images[:, ::-1]  # of another order in memory
    wanted = predictor([Image.fromarray(image) for image in images])
    assert all(map(close, predictor([*images]), wanted))
    assert close(predictor(images[0]), wanted[0])
    assert close(predictor(jnp.asarray(images[0])), wanted[0])


def close(found, wanted):
    """Whether predictions are the same but for rounding: of programs of other sizes."""
    same = [one[:2] for one in found] == [other[:2] for other in wanted]
    pairs = zip(found, wanted, strict=True)
    return same and all(np.isclose(a.probability, b.probability) for a, b in pairs)


def test_generators_and_arrays_of_several(predictor, pictures, tmp_path):
    want = predictor(pictures)
    assert all(map(close, predictor(image for image in pictures), want))
    endless = itertools.cycle(pictures)
    taken = list(itertools.islice(predictor.stream(endless), 7))
    assert all(map(close, taken, [want[i % 3] for i in range(7)]))
    Image.fromarray(pictures[0]).save(tmp_path / "0.png")
    (found,) = predictor.stream(str(tmp_path / "0.png"))
    assert close(found, want[0])


def test_a_folder_stands_for_all_of_its_images(predictor, pictures, tmp_path, capsys):
    """Those of sub-folders come last, and other files are said to be left out."""
    (tmp_path / "val").mkdir()
    for number, name in enumerate(("b.png", "val/a.png", "a.png")):
        Image.fromarray(pictures[number]).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    want = [predictor(pictures[number]) for number in (2, 0, 1)]
    for folder in (tmp_path, str(tmp_path)):
        assert all(map(close, predictor(folder), want))
        assert len([*predictor.stream(folder)]) == 3
    assert f"{tmp_path}/notes.txt is left out" in capsys.readouterr().out
    with refused(f"folder {tmp_path / 'none'}", "holds no images"):
        (tmp_path / "none").mkdir()
        predictor(tmp_path / "none")


def test_what_comes_before_a_failing_source_is_answered(predictor, pictures):
    """The second of two batches is cut short."""

    def source():
        yield from pictures
        raise OSError("the camera is gone")

    answers = []
    with pytest.raises(OSError, match="the camera is gone"):
        for answer in predictor.stream(source()):
            answers.append(answer)
    assert len(answers) == 3
    assert all(map(close, answers, predictor(pictures)))


def test_images_are_read_when_they_are_given(predictor, pictures, tmp_path):
    """A camera fills one buffer again and again, and files are closed."""
    want = predictor(pictures)
    buffer = np.empty_like(pictures[0])
    names = [tmp_path / f"{i}.png" for i in range(len(pictures))]
    for name, picture in zip(names, pictures, strict=True):
        Image.fromarray(picture).save(name)

    def frames():
        for picture in [*pictures] * 2:
            buffer[:] = picture
            yield buffer

    def opened():
        for name in names:
            with Image.open(name) as image:
                yield image

    assert all(map(close, predictor(frames()), want * 2))
    assert all(map(close, predictor(opened()), want))
    with Image.open(names[0]) as late, concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = pool.map(predictor, [late] * 16)
        assert all(close(each, want[0]) for each in found)


def test_a_bad_image_loses_no_other(predictor, pictures, trained, tmp_path):
    want = predictor(pictures)
    (tmp_path / "torn.png").write_bytes(b"no image")
    bad = ["no.png", tmp_path / "torn.png", Image.new("RGB", (0, 4))]
    found = predictor([pictures[0], bad[0], pictures[1], bad[1], pictures[2], bad[2]])
    assert [isinstance(one, InputError) for one in found] == [0, 1, 0, 1, 0, 1]
    assert all(map(close, found[:5:2], want))
    assert str(found[1]).startswith("no.png cannot be read (")
    assert str(found[3]).endswith("torn.png cannot be read (no known image format)")
    assert str(found[5]).startswith("image 5: a PIL image cannot be read")
    predict = imagepiece_jax.Predictor(trained, resize="none", dtype="float32")
    file = tmp_path / "small.png"
    Image.new("RGB", (7, 5)).save(file)
    (found,) = predict([file])
    assert isinstance(found, InputError)
    assert str(found).startswith(f"{file}: ")


def mistaken(pictures):
    """{what no image can be, whatever it holds: the value of its error}, by name."""
    floats = np.float32(pictures)
    good = pictures[0]
    return {
        "floats": (floats, "float32 [3, 20, 20, 3]"),
        "sixteen bits": (np.uint16(pictures), "uint16 [3, 20, 20, 3]"),
        "five channels": (np.zeros((2, 8, 8, 5), np.uint8), "uint8 [2, 8, 8, 5]"),
        "one channel": (pictures[..., :1], "uint8 [3, 20, 20, 1]"),
        "five axes": (pictures[None], "uint8 [1, 3, 20, 20, 3]"),
        "no pixels": (pictures[:, :0], "uint8 [3, 0, 20, 3]"),
        "numbers": (np.arange(3), "int64 [3]"),
        "other sizes": (np.zeros((2, 24, 24, 3), np.uint8), (24, 24)),
        "a list of floats": ([good, floats[1]], "float32 [20, 20, 3]"),
        "None": (None, "NoneType"),
        "None in a list": ([good, None], "NoneType"),
        "lists": ([good, good.tolist()], "list"),
        "a pattern": ("pictures/*.png", None),
        "texts": ([good, io.StringIO("text")], "str"),
    }


@pytest.mark.parametrize("name", mistaken(np.zeros((3, 20, 20, 3), np.uint8)))
def test_what_can_be_no_image_is_raised(name, predictor, pictures):
    """By recover, too; an error in place of a result is of one image."""
    images, value = mistaken(pictures)[name]
    subjects = {"other sizes": "the image", "a pattern": "pictures/*.png"}
    subject = subjects.get(name, "images")
    with refused(subject):
        predictor(images)
    if isinstance(images, list):
        with refused(subject):
            as_source(images)


def test_recover_leaves_out_what_cannot_be_read(pictures, caplog):
    """As a Predictor answers it in its place; alone it is raised."""
    bad = ["no.png", Image.new("RGB", (0, 4))]
    source = as_source([pictures[0], *bad, pictures[1]])
    for place in range(2):
        np.testing.assert_array_equal(source.read(place)[0], pictures[place])
    assert len(source) == 2
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    with refused("images", "no.png does not exist"):
        as_source(bad[0])


def test_many_calls_at_once(predictor, pictures):
    """Each answers, or raises its own error."""
    want = predictor(pictures)

    def ask(number):
        if number % 5 == 4:
            with pytest.raises(InputError, match=f"no{number}.png cannot be read"):
                predictor(f"no{number}.png")
            return True
        if number % 5 == 3:
            found = predictor([pictures[1], f"no{number}.png"])
            return close(found[0], want[1]) and f"no{number}" in str(found[1])
        return close(predictor(pictures[number % 3]), want[number % 3])

    with concurrent.futures.ThreadPoolExecutor(40) as callers:
        assert all(callers.map(ask, range(200)))


def test_sizes_are_compiled_once_when_they_are_needed(trained, pictures, monkeypatch):
    made = []

    def counting(*args, **options):
        compiled = optimize.compiler(*args, **options)
        return lambda batch_size: made.append(batch_size) or compiled(batch_size)

    monkeypatch.setattr(api, "compiler", counting)
    predict = imagepiece_jax.Predictor(trained, batch_size=12, **QUICK)
    assert predict.sizes == (1, 8, 12)
    assert made == []
    predict(pictures[0])
    predict(pictures[:1])
    assert made == [1]
    predict(pictures)
    assert made == [1, 8]
    predict.warm_up()
    assert made == [1, 8, 12]
    assert predict.program.batch_size == 12


def test_images_are_cropped_as_the_weights_say(trained, traced_once):
    """Unless another way is asked for; DeiT resizes no images of this size."""
    prepared = {"crop": 1.0, "crop_mode": "squash", "interpolation": "bilinear"}
    prepared = Preprocessing(tiny.SIDE, **prepared)
    vit = dataclasses.replace(trained, preprocessing=prepared)
    options = {"batch_size": 1, "top": 7} | QUICK
    predict = imagepiece_jax.Predictor(vit, **options)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    small = Image.fromarray(pixels).resize((tiny.SIDE,) * 2, Image.Resampling.BILINEAR)
    assert predict(pixels) == predict(np.asarray(small))
    unresized = imagepiece_jax.Predictor(vit, resize="none", **options)
    with refused("the image"):
        unresized(pixels)


def test_several_labels_have_a_probability_each(trained, predictor, pictures):
    """The sigmoid of each logit, in the order of a softmax."""
    kind = "multi_label_classification"
    vit = tiny.of_problem(trained, kind)
    several = imagepiece_jax.Predictor(vit, top=tiny.CLASSES, batch_size=1, **QUICK)
    normalized = (pictures[:1] / 255 - np.array(MEAN)) / np.array(STD)
    run = tiny.compiled(trained.model.apply)
    (logits,) = np.float64(run(trained.variables, np.float32(normalized)).logits)
    found = several(pictures[0])
    assert [p.index for p in found[:3]] == [p.index for p in predictor(pictures[0])]
    for one in found:
        wanted = 1 / (1 + np.exp(-logits[one.index]))
        assert one.probability == pytest.approx(wanted, rel=1e-4)
    vit = tiny.of_problem(trained, "regression")
    with refused("problem_type"):
        imagepiece_jax.Predictor(vit, batch_size=1, **QUICK)


def test_models_of_few_classes_and_of_none(pictures, predictor):
    vit = tiny.pretrained(depth=1, num_classes=3)
    predict = imagepiece_jax.Predictor(vit, batch_size=1, **QUICK)
    assert sorted(found.index for found in predict(pictures[0])) == [0, 1, 2]
    # tests/test_encoders.py has the vectors that such a model gives.
    assert predictor(pictures) == predictor([*pictures])
    vit = tiny.pretrained(depth=1, num_classes=0)
    with refused("top"):
        api.Predictor(vit, top=1)


@pytest.mark.parametrize(
    "image, subject, value",
    [
        ("no.png", "no.png", "No such file or directory"),
        ("configs", "folder configs", None),
        (3, "images", "int"),
        (np.zeros((20, 20, 3)), "images", "float64 [20, 20, 3]"),
        (np.zeros((20, 24, 3), np.uint8), "the image", (20, 24)),
    ],
)
def test_what_is_no_image(predictor, image, subject, value):
    """One alone has no number in the sentence."""
    with refused(subject) as caught:
        predictor(image)
    assert "image 0" not in str(caught.value)


@pytest.mark.parametrize(
    "option, given, value",
    [
        ("labels", "imagenet", 1000),
        ("labels", "cifar", "cifar"),
        ("top", 8, 8),
        ("top", True, True),
        ("resize", "big", "big"),
        ("batch_size", -1, -1),
    ],
)
def test_impossible_predictors(trained, option, given, value):
    with refused(option):
        imagepiece_jax.Predictor(trained, **{option: given})


def test_a_new_head_is_warned_of_once(trained, tmp_path):
    imagepiece_jax.save(tmp_path / "m", trained)
    with pytest.warns(UserWarning, match="untrained was drawn"):
        vit = imagepiece_jax.load(tmp_path / "m", num_classes=3)
    with pytest.warns(UserWarning) as said:
        imagepiece_jax.Predictor(vit)
    assert len(said) == 1


def test_a_projection_is_no_classifier(trained):
    """CLIP's head has no bias: zeros here."""
    params = trained.variables["params"]
    head = params["head"] | {"bias": 0 * params["head"]["bias"]}
    variables = {"params": params | {"head": head}}
    projecting = dataclasses.replace(trained, variables=variables)
    with pytest.warns(UserWarning, match="no bias, .* so its outputs are no classes"):
        imagepiece_jax.Predictor(projecting)
    imagepiece_jax.Predictor(projecting, labels=NAMES)


def test_a_process_that_only_imports_this_can_fork():
    """Threads of JAX start with `load`, and a fork would have none of them."""
    lines = (
        "import imagepiece_jax",
        "assert imagepiece_jax.load and imagepiece_jax.Predictor",
        "from jax._src import xla_bridge",
        "assert not xla_bridge.backends_are_initialized()",
    )
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)
