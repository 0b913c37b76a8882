"""A run knows its classes by name, and whoever uses it is told of other ones."""

import functools
import re

import pytest
from PIL import Image

import imagepiece_jax
from imagepiece_jax.commands import evaluate
from imagepiece_jax.data import class_names
from imagepiece_jax.data.sources.registry import open_source
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.variables import variable_shapes
from imagepiece_jax.training.cluster import run_dir
from imagepiece_jax.training.cluster.checkpoint import Checkpoints
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.training.initial_weights import InitialWeights
from imagepiece_jax.weights import load
from imagepiece_jax.weights.run_files import read_class_names
from tests import runs
from tests.command import call, sentence
from tests.models import tiny
from tests.refused import refused

SIZE = {"depth": 1, "embed_dim": 8, "num_heads": 2}
SMALL = {f"model.{name}": value for name, value in SIZE.items()}
SMALL["reduction"] = "imagepiece:merge_blocks=():prune_blocks=()"


configured = functools.partial(runs.configured, SMALL, {"num_classes": 2})


def folder(root, *names):
    """Two images of 16x16 for each class and split."""
    for split in ("train", "val"):
        for name in names:
            (root / split / name).mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (16, 16)).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder as training leaves it, of the classes ant and bee."""
    workdir = tmp_path_factory.mktemp("runs") / "insects"
    config = configured()
    run_dir.record_start(workdir, RunConfig.from_config(config).to_dict())
    run_dir.record_classes(workdir, ("ant", "bee"))
    model = RunConfig.from_config(config).create_model()
    variables = tiny.fill(variable_shapes(model))
    checkpoints = Checkpoints(workdir)
    checkpoints.save(1, variables, {}, "best")
    checkpoints.save(1, variables, {})
    checkpoints.close()
    return workdir


def test_names_are_kept_and_read_or_refused(tmp_path):
    assert read_class_names(tmp_path, 3) is None
    run_dir.record_classes(tmp_path, None)
    assert not list(tmp_path.iterdir())
    config = RunConfig.from_config(configured(num_classes=3))
    run_dir.record_start(tmp_path, config.to_dict())
    names = ("ant", None, "Käfer \ufffd")
    run_dir.record_classes(tmp_path, names)
    assert read_class_names(tmp_path, 3) == names
    assert "Käfer" in (tmp_path / "classes.json").read_text(encoding="utf-8")
    run_dir.record_classes(tmp_path, names[:2])
    with refused("class_names", "classes.json", "3 classes"):
        read_class_names(tmp_path, 3)


def other_class(weights, names):
    """(label, name, other name) of the first class that differs, or None."""
    try:
        class_names.check_classes(weights, "weights", names, "data")
    except InputError as error:
        pattern = r"weights: class (\d+) is '(.*)', but '(.*)' in data"
        label, *both = re.fullmatch(pattern, str(error)).groups()
        return int(label), *both


@pytest.mark.parametrize(
    "names, other",
    [
        (("ant", "bee"), None),
        (("bee", "ant"), (0, "ant", "bee")),
        (None, None),
        ((None, "wasp"), (1, "bee", "wasp")),
    ],
)
def test_the_first_class_of_another_name(run, names, other):
    weights = load.load(run).class_names
    assert other_class(weights, names) == other


def test_other_classes_are_not_evaluated(run, tmp_path):
    """The same number of classes, and so the same shapes; in a folder that is saved."""
    path = imagepiece_jax.save(imagepiece_jax.load(run), tmp_path / "saved")
    images = folder(tmp_path / "set", "ant", "wasp")
    said = sentence(call(evaluate.main, str(path), str(images), "--workers=0"))
    assert "class 'wasp', but no class of" in said
    words = "filename,label,class\nset/val/ant/0.png,0,ant\nset/val/wasp/0.png,1,wasp\n"
    (tmp_path / "set.csv").write_text(words)
    data = f"csv:{tmp_path}/set.csv"
    said = sentence(call(evaluate.main, str(path), data, "--workers=0"))
    assert said.startswith(f"folder {path}: class 1 is 'bee', but 'wasp' in {data}")


@pytest.mark.parametrize("weights", ["init", "teacher"])
def test_other_classes_are_not_learned(run, tmp_path, weights):
    config = RunConfig.from_config(configured(**{f"{weights}.weights": str(run)}))
    place = f"config.{weights}.weights {run}"
    said = f"{place}: class 1 is 'bee', but 'wasp' in config.data.name 'digits'"
    with refused(said):
        start = InitialWeights(config, tmp_path)
        start.check_classes(("ant", "wasp"))


def test_a_wordnet_id_and_its_name_are_the_same_class():
    synsets, lemmas = zip(*class_names.imagenet_rows(), strict=True)
    short = class_names.imagenet_names()
    assert other_class(short, synsets) is None
    assert other_class(synsets, short) is None
    assert other_class(short, synsets[:1] + synsets[2:]) == (
        1,
        "goldfish",
        synsets[2],
    )
    assert other_class(short, lemmas) == (0, "tench", "tench, Tinca tinca")
    assert other_class(("ant", "bee"), ("0", "1")) == (0, "ant", "0")


def open_val(root, names, **options):
    return open_source(f"folder:{folder(root, *names)}", "val", **options)


@pytest.mark.parametrize(
    "folders, model",
    [
        (("ant", "n01440764"), ("tench", "bee", "ant")),
        (("ant", "tench"), ("n01440764", None, "ant")),
    ],
)
def test_folders_have_the_labels_of_their_names(tmp_path, folders, model):
    """Those of some classes are enough."""
    source = open_val(tmp_path, folders, num_classes=3, class_names=model)
    assert source.num_classes == 3
    assert source.class_names == (folders[1], None, "ant")
    assert source.labels.tolist() == [2, 2, 0, 0]


@pytest.mark.parametrize(
    "folders, model, message",
    [
        (("ant", "bee"), ("bee", "cat"), "class 'ant', .*model's 2 .*class_names="),
        (("n01440764", "tench"), ("ant", "tench"), "class 1 twice, as 'n01.*'tench'"),
        (("giant_panda",), ("giant panda",), "class 'giant_panda', .*class_names="),
    ],
)
def test_folders_of_other_names_are_refused(tmp_path, folders, model, message):
    """Neither their number nor their order makes them classes of a model."""
    with pytest.raises(InputError, match=message):
        open_val(tmp_path, folders, num_classes=len(model), class_names=model)


@pytest.mark.parametrize("names", [["01", "02", "10"], ["a9", "b10"]])
def test_folders_sort_as_text(tmp_path, names):
    """Where no model has names for them."""
    source = open_val(tmp_path, names)
    assert source.class_names == tuple(names)
    assert source.labels.tolist() == [
        label for label in range(len(names)) for _ in "01"
    ]


@pytest.mark.parametrize(
    "names, message",
    [
        ([*map(str, range(12))], "class '11' before '2'"),
        (["a1_2", "a1_10", "none"], "class 'a1_10' before 'a1_2'"),
    ],
)
def test_numbers_that_sort_in_another_order_than_text_are_refused(
    tmp_path, names, message
):
    """timm takes the one order, and torchvision the other."""
    with pytest.raises(InputError, match=message):
        open_val(tmp_path, names)
    model = tuple(names)
    named = open_source(f"folder:{tmp_path}", "val", class_names=model)
    assert named.class_names == model


# é, as Linux and Windows write it and as macOS does.
COMPOSED = "caf\u00e9"
DECOMPOSED = "cafe\u0301"


def test_names_of_a_model_are_the_same_in_either_spelling_of_unicode(tmp_path):
    for name in (DECOMPOSED, "cafz"):
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(tmp_path / "val" / name / "0.png")
    for names in ((COMPOSED, "cafz"), (DECOMPOSED, "cafz")):
        source = open_source(
            f"folder:{tmp_path}", "val", num_classes=2, class_names=names
        )
        assert source.class_names == (DECOMPOSED, "cafz")
        assert other_class(names, source.class_names) is None
