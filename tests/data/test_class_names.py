import contextlib
import dataclasses
import functools

import pytest

import imagepiece_jax
from imagepiece_jax.data import class_names
from imagepiece_jax.data.sources.registry import open_source
from imagepiece_jax.training.cluster import run_dir
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.training.initial_weights import InitialWeights
from imagepiece_jax.weights.folder_files import read_class_names
from tests.helpers import small_runs, tiny_vit
from tests.helpers.picture_files import write_plain
from tests.helpers.refused_calls import refused

SMALL = {"model.depth": 1, "model.embed_dim": 8, "model.num_heads": 2}
SMALL["reduction"] = "imagepiece:merge_blocks=():prune_blocks=()"
configured = functools.partial(small_runs.quickstart_config, SMALL, {"num_classes": 2})


def test_a_run_keeps_its_class_names(tmp_path):
    assert read_class_names(tmp_path, 3) is None
    config = RunConfig.from_config(configured(num_classes=3)).to_dict()
    names = ("ant", None, "Käfer \ufffd")
    run_dir.record_start(tmp_path, config, names)
    run_dir.record_start(tmp_path, config)
    assert read_class_names(tmp_path, 3) == names
    assert "Käfer" in (tmp_path / "classes.json").read_text(encoding="utf-8")
    with refused("class_names", "classes.json", "4 names"):
        read_class_names(tmp_path, 4)
    for wrong_names in (b"ab", {0: "a", 1: "b"}, {"a", "b"}):
        with refused("class_names"):
            class_names.checked_names(wrong_names, 2)


# é on Linux and Windows, and on macOS.
COMPOSED = "caf\u00e9"
DECOMPOSED = "cafe\u0301"
SYNSETS, LEMMAS = zip(*class_names.imagenet_rows(), strict=True)
SHORT = class_names.imagenet_names()


@pytest.mark.parametrize(
    "weights, names, message",
    [
        (("ant", DECOMPOSED), ("ant", COMPOSED), None),
        (
            ("ant", COMPOSED),
            (COMPOSED, "ant"),
            f"class 0 is 'ant', but '{COMPOSED}' in",
        ),
        (("ant", "bee"), None, None),
        (("ant", "bee"), (None, "wasp"), "class 1 is 'bee', but 'wasp' in data"),
        (SHORT, SYNSETS, None),
        (SYNSETS, SHORT, None),
        (SHORT, SYNSETS[:1] + SYNSETS[2:], "class 1 is 'goldfish', but"),
        (SHORT, LEMMAS, "class 0 is 'tench', but 'tench, Tinca tinca'"),
    ],
)
def test_the_first_differing_class_is_named(weights, names, message):
    with refused(message) if message else contextlib.nullcontext():
        class_names.check_classes(weights, "weights", names, "data")


@pytest.mark.parametrize("weights", ["init", "teacher"])
def test_data_with_other_classes_are_not_trained_on(tmp_path, weights):
    vit = tiny_vit.pretrained(num_classes=2, image_size=16, depth=1)
    vit = dataclasses.replace(vit, class_names=("ant", "bee"))
    path = imagepiece_jax.save(vit, tmp_path / "saved")
    config = RunConfig.from_config(configured(**{f"{weights}.weights": str(path)}))
    start = InitialWeights(config, tmp_path)
    with refused(f"config.{weights}.weights", "class 1 is 'bee', but 'wasp' in digits"):
        start.check_classes(("ant", "wasp"))


def open_val(root, names, **options):
    """Two images for each class."""
    for name in names:
        write_plain(root / "val" / name, "0.png", "1.png")
    return open_source(f"folder:{root}", "val", **options)


@pytest.mark.parametrize(
    "folders, model, labels",
    [
        (("ant", "n01440764"), ("tench", "bee", "ant"), [2, 2, 0, 0]),
        (("ant", "tench"), ("n01440764", None, "ant"), [2, 2, 0, 0]),
        (("01", "02", "10"), None, [0, 0, 1, 1, 2, 2]),
        (("a9", "b10", "b8c"), None, [0, 0, 1, 1, 2, 2]),
    ],
)
def test_folders_names_give_their_labels(tmp_path, folders, model, labels):
    source = open_val(tmp_path, folders, num_classes=3, class_names=model)
    assert source.labels.tolist() == labels
    expected_names = (folders[1], None, "ant") if model else folders
    assert (source.num_classes, source.class_names) == (3, expected_names)


@pytest.mark.parametrize(
    "folders, model, message",
    [
        (("giant_panda",), ("giant panda",), "class 'giant_panda', the name of no"),
        # timm and torchvision sort differently.
        ([*map(str, range(12))], None, "class '11' before '2'"),
        (["a1_2", "a1_10", "none"], None, "class 'a1_10' before 'a1_2'"),
        # Folders' names that differ in form alone, and a model's equal names.
        ((COMPOSED, DECOMPOSED), None, "the name of two classes"),
        (("n01440764", "tench"), None, "the name of two classes"),
        (("ant",), ("ant", "bee", "ant"), "the name of two classes"),
    ],
)
def test_unknown_or_ambiguous_folders_are_refused(tmp_path, folders, model, message):
    num_classes = len(model or folders)
    with refused(message):
        open_val(tmp_path, folders, num_classes=num_classes, class_names=model)
