"""describe, evaluate and doctor: what they print, and that it is true."""

import functools
import json
import re

import jax
import numpy as np
import pytest
from PIL import Image

import imagepiece_jax
from imagepiece_jax.commands import describe, doctor, evaluate
from imagepiece_jax.config.run import RunConfig
from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.evaluate import accuracy
from imagepiece_jax.input.registry import open_source
from imagepiece_jax.training import report
from tests.benchmark.small import FIELDS, OF_WEIGHTS, TINY
from tests.command import call, sentence, start
from tests.models import tiny
from tests.pictures import write_csv
from tests.runs import ROOT, configured

KEYS = {"acc1", "acc5", "loss", "images", "gmacs", "throughput", "unreadable"}
FACTS = {"preprocessing", "weights", "checkpoint", "data", "limit", "dtype"}
FACTS |= {"trained", "averaged", "reduction", "num_classes"}
FACTS |= {"recovered"}
KEYS |= FACTS


@pytest.fixture(scope="module", autouse=True)
def _one_program():
    """Evaluations of one model and batch size share a program."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accuracy, "model_step", functools.cache(accuracy.model_step))
        yield


def described(name, *words):
    """(table, cost, what is not computed), without the memory of a training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "estimate", lambda run: "trained")  # traces a step
        words = ["--config", f"{ROOT}/configs/{name}", *words]
        ended = call(describe.main, *words).quiet()
    *table, cost, dead, trained = ended.out.rstrip("\n").split("\n")
    assert trained == "trained"
    return table, cost, dead


def test_describe_prints_operations_and_the_line_of_a_docstring():
    path = ROOT / "configs" / "deit_s.py"
    out = call(describe.main, "--config", path).out
    cost, _, training, line = out.splitlines()[-4:]
    assert cost == "4.599 GMACs an image"
    assert training == "training: 10.6 EFLOP (1e18 operations, two a MAC)"
    assert line == "4.60 GMACs, 197 final tokens, 10.6 EFLOP, no published acc1"
    assert f"    {line.removesuffix('no published acc1')}pub" in path.read_text()


def test_describe_imagepiece_against_both_dense_models():
    table, cost, dead = described("deit_s_imagepiece.py")
    assert cost == (
        "2.783 GMACs an image; dense 4.976 with a conv stem, 1.79 times as many; "
        "dense 4.599 with a patch stem, 1.65 times as many"
    )
    # 60 tokens: 10 products of width 384 a token, and two with 61 others.
    assert 60 * (10 * 384**2 + 2 * 61 * 384) == 91_284_480
    assert dead == "0.09128 GMACs of the last block are not computed for logits"
    heading, stem, *blocks, head, total = [line.split() for line in table]
    assert heading == "attention MLP MMACs dense parameters image tokens".split()
    for block, row in (
        (0, "block 0 197 181 359.5 378.4 1,774,464 Retokenize: 196 - 16"),
        (2, "block 2 166 133 276.0 378.4 1,774,464 TopK: 165 - 33"),
        (11, "block 11 61 61 110.8 378.4 1,774,464"),
    ):
        assert blocks[block] == row.split()
    assert stem == "stem 435.3 435.3 1,097,520".split()
    # 384 * 1000 weights, 1000 biases and the norm's 2 * 384
    assert head == "head 0.4 0.4 385,768".split()
    assert total == "total 2783.2 4976.4 22,776,856".split()


@pytest.fixture(scope="module")
def model_and_variables():
    """The tiny model with weights that tell classes apart by chance alone."""
    model = RunConfig.from_config(configured(FIELDS)).create_model()
    # Larger than what training starts from, so that logits differ clearly.
    return model, tiny.fill(tiny.shapes(model, 16), seed=3)


@pytest.fixture(scope="module")
def weights_file(model_and_variables, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    return tiny.write(folder / "tiny.npz", model_and_variables[1])


def test_describe_of_weights(weights_file, assets):
    want = call(describe.main, *TINY)
    ended = call(describe.main, *OF_WEIGHTS, "--weights", weights_file)
    assert want.status == ended.status == 0
    # What a training costs is the config's own matter.
    assert want.out.startswith(ended.out + "training: ")
    assert " EFLOP (1e18 operations, two a MAC) for every 1,000 training" in want.out
    file = assets / "weights" / "deit_tiny_patch16_224.npz"
    words = ["--name=deit_ti", "--reduction=evit"]
    ended = call(describe.main, "--weights", file, *words)
    # As in tests/models/cost_vectors.json.
    assert "0.8121 GMACs an image; dense 1.254" in ended.out, ended


@pytest.fixture(scope="module")
def image_set(tmp_path_factory):
    """150 images of 16x16 as PNG with a CSV file: (folder, pixels, labels)."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (150, 16, 16, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, 150)
    write_csv(folder, pixels, labels)
    return folder, pixels, labels


@pytest.fixture
def words(weights_file, image_set):
    """To evaluate them on those images, in batches of 64."""
    data = f"--data=csv:{image_set[0]}/set.csv"
    return [f"--weights={weights_file}", data, "--batch=64", "--workers=0"]


def evaluated(tmp_path, *words, of_weights=OF_WEIGHTS):
    """(what was printed, what the JSON file holds)."""
    out = tmp_path / "result.json"
    ended = call(evaluate.main, *of_weights, "--json", out, *words).ok()
    assert sorted(tmp_path.glob("result*")) == [out]  # written whole, nothing beside it
    return ended, json.loads(out.read_text())


@pytest.fixture(scope="module")
def logits(model_and_variables, image_set):
    """The model's, float64 [150, 10], one image at a time."""
    model, variables = model_and_variables
    forward = tiny.compiled(lambda image: model.apply(variables, image).logits)
    images = np.asarray(normalize(image_set[1], model.mean, model.std))
    return np.concatenate([forward(image[None]) for image in images], dtype=float)


def by_hand(logits, labels):
    """acc1, acc5 and loss in NumPy."""
    own = logits[np.arange(len(labels)), labels][:, None]
    place = (logits > own).sum(axis=1)
    losses = np.log(np.exp(logits).sum(axis=1)) - own[:, 0]
    return 100 * (place < 1).mean(), 100 * (place < 5).mean(), losses.mean()


def assert_by_hand(result, logits, labels):
    acc1, acc5, loss = by_hand(logits, labels)
    assert result["images"] == len(labels)
    assert result["acc1"] == pytest.approx(acc1, abs=1e-9)
    assert result["acc5"] == pytest.approx(acc5, abs=1e-9)
    assert result["loss"] == pytest.approx(loss, rel=1e-5)


def test_evaluate_counts_every_image_once(
    tmp_path, logits, weights_file, words, image_set
):
    """150 is no multiple of 64: the padding of the last batch counts nothing."""
    ended, result = evaluated(tmp_path, *words)
    assert_by_hand(result, logits, image_set[2])
    assert set(result) == KEYS
    assert result["throughput"] > 0
    assert result["unreadable"] == 0
    shown = ended.out.replace(str(weights_file.parent), "")  # may have a number
    printed = dict(re.findall(r"(\w+) ([\d.]+)", shown))
    assert result["num_classes"] == 10
    assert set(printed) == KEYS - {"unreadable"} - FACTS
    assert printed["acc1"] == f"{result['acc1']:.2f}"
    assert printed["images"] == "150"


@pytest.mark.parametrize("limit, count", [(70, 70), (151, 150)])
def test_evaluate_takes_images_spread_over_the_set(
    tmp_path, logits, words, image_set, limit, count
):
    """The second batch of 70 is padded; a limit above the set is no limit."""
    ended, result = evaluated(tmp_path, *words, f"--limit={limit}")
    taken = [round(149 * place / (count - 1)) for place in range(count)]
    assert_by_hand(result, logits[taken], image_set[2][taken])
    note = f"note: {count} of 150 images are taken, evenly spaced"
    assert ("part" in result) == (note in ended.out) == (count < 150)


def test_evaluate_notes_images_of_few_classes(tmp_path, words, image_set):
    folder, _, labels = image_set
    some = np.flatnonzero(np.isin(labels, (1, 2, 5, 8)))
    lines = ["filename,label", *(f"{i}.png,{labels[i]}" for i in some)]
    (folder / "some.csv").write_text("\n".join(lines))
    words[1] = f"--data=csv:{folder}/some.csv"
    ended, _ = evaluated(tmp_path, *words)
    assert (
        "note: 4 classes have images, and the model chooses among all 10" in ended.out
    )


def test_evaluate_leaves_a_corrupt_image_out_and_names_it(
    tmp_path, logits, words, image_set, caplog
):
    folder, _, labels = image_set
    damaged = folder / "77.png"
    full = damaged.read_bytes()
    damaged.write_bytes(full[:100])
    try:
        ended, result = evaluated(tmp_path, *words)
    finally:
        damaged.write_bytes(full)
    rest = np.arange(150) != 77
    assert_by_hand(result, logits[rest], labels[rest])
    assert result["unreadable"] == 1
    assert "unreadable images left out: 1" in ended.out
    assert f"{damaged} cannot be read" in caplog.text


def test_evaluate_compares_the_optimized_program(tmp_path, logits, words, image_set):
    """Both rows by hand, and the difference between them."""
    words += ["--dtype=float32", "--optimized", "--gelu=tanh"]
    ended, result = evaluated(tmp_path, *words)
    acc1, acc5, loss = by_hand(logits, image_set[2])
    for name, gelu in (("reference", "exact"), ("optimized", "tanh")):
        row = result[name]
        assert (row["images"], row["dtype"], row["gelu"]) == (150, "float32", gelu)
        assert row["acc1"] == pytest.approx(acc1, abs=1.5)  # two images
        assert row["loss"] == pytest.approx(loss, rel=1e-4)
    assert result["reference"]["acc5"] == pytest.approx(acc5, abs=1e-9)
    change = result["optimized"]["acc1"] - result["reference"]["acc1"]
    assert result["optimized"]["difference"] == pytest.approx(change, abs=1e-9)
    assert f"the program's cost: acc1 {change:+.2f} [" in ended.out


def test_evaluate_digits_and_folder_agree(tmp_path, weights_file):
    """The same 359 digits, from the package and from PNG files."""
    source = open_source("digits", "val")
    for index in range(len(source)):
        image, label = source.read(index)
        for split in ("train", "val"):
            folder = tmp_path / "set" / split / str(label)
            folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{index}.png")
    words = [f"--weights={weights_file}", "--resize=none", "--workers=0", "--batch=64"]
    _, digits = evaluated(tmp_path, *words, "--data=digits")
    _, folder = evaluated(tmp_path, *words, f"--data=folder:{tmp_path}/set")
    assert digits["images"] == folder["images"] == 359
    assert digits["acc1"] == folder["acc1"]
    assert digits["acc5"] == folder["acc5"]
    assert digits["loss"] == pytest.approx(folder["loss"], rel=1e-5)


def test_evaluate_resizes_only_where_asked(tmp_path, weights_file):
    """40x40 pixels: as DeiT does for the 48-pixel model, refused as they are."""
    grays = np.uint8([0, 60, 120, 180])[:, None, None, None]
    write_csv(tmp_path, np.broadcast_to(grays, (4, 40, 60, 3)), range(4))
    size = {"image_size": 48, "model.depth": 1, "reduction.prune_blocks": ()}
    size |= {"model.stem": "patch"}
    reduction = "imagepiece:merge_blocks=(0,):prune_blocks=()"
    model = RunConfig.from_config(configured(FIELDS, size)).create_model()
    tiny.write(tmp_path / "w.npz", tiny.fill(tiny.shapes(model, 48)))
    words = [f"--data=csv:{tmp_path}/set.csv", f"--weights={tmp_path}/w.npz"]
    words += ["--batch=4", "--workers=0", "--crop=0.875"]
    given = {"of_weights": [*OF_WEIGHTS[:2], f"--reduction={reduction}"]}
    ended, result = evaluated(tmp_path, *words, "--resize=deit", **given)
    assert result["images"] == 4
    assert "  resize 54 bicubic, crop 48  " in ended.out
    assert "pixels" not in ended.out
    expected = {"image_size": [48, 48], "resize": "deit", "crop": 0.875}
    expected |= {"crop_mode": "center", "interpolation": "bicubic", "rule": "timm"}
    assert result["preprocessing"] == expected
    for i in range(4):
        Image.new("RGB", (48, 48)).save(tmp_path / f"{i}.png")
    ended, _ = evaluated(tmp_path, *words, "--resize=deit", **given)
    assert "note: each image read (4 of 4) has 48x48 pixels" in ended.out
    ended, result = evaluated(tmp_path, *words, "--resize=none", "--limit=3", **given)
    assert "  images as they are, 48x48  " in ended.out
    assert "pixels" not in ended.out
    assert result["preprocessing"] == {"image_size": [48, 48], "resize": "none"}
    assert (result["data"], result["limit"]) == (f"csv:{tmp_path}/set.csv", 3)
    assert (result["weights"], result["checkpoint"]) == (f"{tmp_path}/w.npz", None)


def test_doctor_says_each_thing_in_one_line(monkeypatch):
    monkeypatch.setattr(doctor, "LIBRARIES", ("jax", "no-such-library"))
    lines = call(doctor.main).quiet().out.splitlines()
    assert lines[0] == f"imagepiece_jax {imagepiece_jax.__version__}"
    assert lines[1].startswith("python 3.")
    assert lines[2:4] == [f"jax {jax.__version__}", "no-such-library is not installed"]
    device = jax.devices()[0]
    count = len(jax.devices())
    assert lines[4] == f"devices: {count} x {device.platform} ({device.device_kind})"


def test_doctor_of_a_device_that_is_not_there_says_the_rest():
    ended = start("-m", "imagepiece_jax", "doctor", JAX_PLATFORMS="nowhere")
    assert sentence(ended).startswith("JAX_PLATFORMS is 'nowhere'; allowed: ")
    assert f"jax {jax.__version__}\n" in ended.out
