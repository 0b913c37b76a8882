"""A run knows its classes by name, and whoever uses it is told of other ones."""

import functools
import re

import numpy as np
import pytest
from PIL import Image

import imagepiece_jax
from imagepiece_jax.commands import evaluate
from imagepiece_jax.common.placement import Placement
from imagepiece_jax.config.run import RunConfig
from imagepiece_jax.config.run_files import CLASSES
from imagepiece_jax.data import class_names
from imagepiece_jax.errors import InputError
from imagepiece_jax.input.registry import open_source
from imagepiece_jax.models import timm_tensors
from imagepiece_jax.models.variables import variable_shapes
from imagepiece_jax.training.cluster import run_dir
from imagepiece_jax.training.cluster.checkpoint import Checkpoints
from imagepiece_jax.training.data import Data
from imagepiece_jax.training.initial_weights import InitialWeights
from imagepiece_jax.weights import load
from imagepiece_jax.weights.runs import read_class_names
from tests import runs
from tests.command import call, sentence, start
from tests.models import tiny
from tests.refused import refused

SIZE = {"depth": 1, "embed_dim": 8, "num_heads": 2}
SMALL = {f"model.{name}": value for name, value in SIZE.items()}
SMALL["reduction"] = "imagepiece:merge_blocks=():prune_blocks=()"
WORDS = [f"--config={runs.ROOT}/configs/quickstart.py", "--config.num_classes=2"]
WORDS += [f"--config.{name}={value}" for name, value in SMALL.items()]


configured = functools.partial(runs.configured, SMALL, {"num_classes": 2})


def initial(config):
    return InitialWeights(RunConfig.from_config(config))


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


def unnamed(run, path):
    """A run of data that name no classes."""
    path.mkdir()
    for entry in run.iterdir():
        if entry.name != CLASSES:
            (path / entry.name).symlink_to(entry)
    return path


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
    (tmp_path / "classes.json").write_text('{"0": "ant"}')
    with refused("class_names", "classes.json"):
        read_class_names(tmp_path, 3)


@pytest.mark.parametrize(
    "names, other",
    [
        (("ant", "bee"), None),
        (("bee", "ant"), (0, "ant", "bee")),
        (("ant", "wasp"), (1, "bee", "wasp")),
        (None, None),
        ((None, "wasp"), (1, "bee", "wasp")),
        (("ant", None), None),
    ],
)
def test_the_first_class_of_another_name(run, names, other):
    weights = load.read_source(run).names_of_data
    assert class_names.other_class(weights, names) == other


@pytest.fixture(scope="module")
def saved(run, tmp_path_factory):
    """The run as `save` writes it."""
    path = tmp_path_factory.mktemp("saved") / "insects"
    return imagepiece_jax.save(path, imagepiece_jax.load(run))


EVALUATE = functools.partial(call, evaluate.main)
BATCHES = ["--config.batch_size=2", "--config.eval_batch_size=2"]
RUN = [*WORDS, "--config.data.name={data}", "--workdir={out}", *BATCHES]
TRAIN = functools.partial(start, "train.py", imported=True), RUN
DATA = "config.data.name '{data}'"
FRESH = DATA + "; or draw a new head by config.init.fresh=('head',)"
TEACHER = "config.teacher.weights {run}"


@pytest.mark.parametrize(
    "command, words, more, weights, data",
    [
        (EVALUATE, ["{run}", "{data}"], ["--workers=0"], "{run}", "{data}"),
        (EVALUATE, ["{saved}", "{data}"], ["--workers=0"], "{saved}", "{data}"),
        (*TRAIN, ["--config.init.weights={run}"], "config.init.weights {run}", FRESH),
        (*TRAIN, ["--config.teacher.weights={run}"], TEACHER, DATA),
    ],
    ids=["evaluate", "saved", "init", "teacher"],
)
def test_other_classes_are_refused(
    run, saved, tmp_path, command, words, more, weights, data
):
    """The same number of classes, and so the same shapes."""
    images = f"folder:{folder(tmp_path / 'set', 'ant', 'wasp')}"
    places = {"run": run, "saved": saved, "data": images, "out": tmp_path / "out"}
    ended = command(*(word.format(**places) for word in words + more))
    message = f"{weights}: class 1 is 'bee', but 'wasp' in {data}"
    assert sentence(ended).startswith(message.format(**places))
    assert not (tmp_path / "out").exists() and "GMACs" not in ended.out  # the table


@pytest.mark.parametrize("form", ["names", "lemmas"])
def test_a_synset_and_its_lemmas_are_the_same_class(form):
    words = getattr(class_names, f"imagenet_{form}")()
    names = [synset for synset, _ in class_names.imagenet_rows()]
    assert class_names.other_class(words, names) is None
    assert class_names.other_class(words, class_names.imagenet_names()) is None
    assert class_names.other_class(words, ["Tinca tinca"]) is None
    names[:2] = "tench", "a word that is not of ImageNet"
    assert class_names.other_class(words, names) is None
    names[1] = names[2]
    assert class_names.other_class(words, names) == (1, words[1], names[2])
    # Words of a run that are not WordNet's: compared as they are.
    mixed = ("maillot", "bee")
    assert class_names.other_class(mixed, ("tank suit", "bee")) is not None


def test_short_names_of_imagenet_differ_and_are_torchvisions_but_four():
    names = class_names.imagenet_names()
    lemmas = class_names.imagenet_lemmas()
    assert len({name.casefold() for name in names}) == 1000
    assert [names[label] for label in (388, 639)] == ["giant panda", "tank suit"]
    pairs = zip(names, lemmas, strict=True)
    coined = [label for label, (name, all_) in enumerate(pairs) if name not in all_]
    assert coined == [134, 517]  # both are "crane" and nothing else
    # But for those of two classes, and for a comma that it leaves out.
    meta = pytest.importorskip("torchvision.models._meta")
    pairs = zip(class_names.imagenet_names(), meta._IMAGENET_CATEGORIES, strict=True)
    assert {pair for pair in pairs if len({*pair}) > 1} == {
        ("crane (bird)", "crane bird"),
        ("crane (machine)", "crane"),
        ("Cardigan Welsh corgi", "Cardigan"),
        ("tank suit", "maillot tank suit"),
    }


def test_labels_by_the_names_of_a_models_classes():
    synsets, words = zip(*class_names.imagenet_rows(), strict=True)
    found = class_names.labels_by_name(words, 1000)
    short = class_names.imagenet_names()
    assert [found[name] for name in short] == [*range(1000)]
    assert class_names.labels_by_name(short, 1000) == found
    assert [found[synset] for synset in synsets] == [*range(1000)]
    assert (found["tench"], found["tench, Tinca tinca"]) == (0, 0)
    assert words[found["maillot"]] == "maillot"
    assert "crane" not in found
    assert (found["crane (bird)"], found[synsets[517]]) == (134, 517)
    assert not {"Tinca tinca", "golden_retriever"} & {*found}
    other = class_names.labels_by_name(("n01440764", "tench", "bee", "bee"), 4)
    assert other == {"n01440764": 0, "tench": 1}
    assert class_names.labels_by_name(None, 1000) == found
    assert class_names.labels_by_name(synsets, 1000)["tench"] == 0
    assert class_names.labels_by_name(None, 10) == {}
    found = class_names.labels_by_name(("bee", None, "wasp"), 3)
    assert (found["bee"], found["wasp"]) == (0, 2)


def test_folders_are_mapped_by_name_to_the_labels_of_a_model(tmp_path):
    data = f"folder:{folder(tmp_path, 'ant', 'n01440764')}"
    known = {"n01440764": 0, "ant": 2}
    source = open_source(data, "val", num_classes=3, labels_by_name=known)
    assert source.num_classes == 3
    assert source.class_names == ("n01440764", None, "ant")
    assert source.labels.tolist() == [2, 2, 0, 0]
    line = class_names.mapped_classes(source.class_names, data, ("tench", "bee", "ant"))
    assert line.startswith(f"the 2 folders of {data} are mapped by name to the model's")
    assert line.endswith(" 3 classes: n01440764 (tench) is 0")
    for labels, message in (
        ({"n01440764": 0}, "class 'ant', which is not one of the model's 3"),
        ({"bee": 0}, "folder .* has 2 classes, none .* model's 3"),
    ):
        with pytest.raises(InputError, match=message):
            open_source(data, "val", num_classes=3, labels_by_name=labels)
    source = open_source(data, "val", num_classes=2, labels_by_name={"bee": 0})
    assert source.labels.tolist() == [0, 0, 1, 1]
    mapped = class_names.mapped_classes
    line = f"the 2 folders of {data} are mapped by the order of their names to the "
    line += "model's 2 classes: "
    assert mapped(source.class_names, data, None) == f"{line}ant is 0"
    names = ("ant", "bee")
    with pytest.raises(InputError, match="has class 'n01440764', which .* 1, 'bee'"):
        mapped(source.class_names, data, names)
    assert mapped(source.class_names, data, ("ant", "tench")) is None
    assert mapped(source.class_names, "csv:x", names) is None
    assert mapped(("0", "1"), data, names) is None
    assert mapped([name for name, _ in class_names.imagenet_rows()], data, None) is None


def test_the_order_of_folders_makes_no_class_another():
    """As many folders as classes, none of which has the model's name."""
    folders = ("giant_panda", "great_white_shark")
    names = ("panda", "shark")
    with refused("folder:x", "class 'giant_panda'", "be class 0, 'panda'"):
        class_names.mapped_classes(folders, "folder:x", names)
    line = class_names.mapped_classes(folders, "folder:x", None)
    assert line.endswith(
        "by the order of their names to the model's 2 classes: giant_panda is 0"
    )


WHOLE = [*map(str, range(12))]
AS_TEXT = ["0", "1", "10", "11", *WHOLE[2:10]]


@pytest.mark.parametrize(
    "names, classes, known, expected",
    [
        (WHOLE, 12, None, WHOLE),
        (WHOLE, None, None, WHOLE),
        (WHOLE, 12, {"ant": 3, "bee": 0}, WHOLE),
        (["3", "10"], 12, {}, ["3", "10"]),
        (WHOLE, 12, {name: i for i, name in enumerate(AS_TEXT)}, AS_TEXT),
        (WHOLE[1:], 11, None, ["1", "10", "11", *WHOLE[2:10]]),
        (["a2", "a10"], 2, None, ["a10", "a2"]),
        (["a2", "a10"], 2, {"a2": 0, "a10": 1}, ["a2", "a10"]),
        (["x", "\u0663", "\u0661\u0660"], 3, {}, ["x", "\u0661\u0660", "\u0663"]),
    ],
)
def test_a_folder_of_a_number_has_this_label(tmp_path, names, classes, known, expected):
    """Unless the model's classes have such names; without a model, text sorts others.

    ImageNetV2's folders are 0 to 999, by label.
    """
    data = f"folder:{folder(tmp_path, *names)}"
    source = open_source(data, "val", num_classes=classes, labels_by_name=known)
    found = {}
    for file, label in zip(source.files, source.labels.tolist(), strict=True):
        found.setdefault(label, file.decode().split("/")[1])
    assert [found[label] for label in sorted(found)] == expected
    named = [name for name in source.class_names if name is not None]
    assert named == expected
    if known in (None, {}) and expected == WHOLE:
        assert sorted(found) == [*range(12)]
    if len(names) == 2 and classes == 12:
        assert found == {3: "3", 10: "10"}


@pytest.mark.parametrize(
    "names, classes, known, message",
    [
        (WHOLE[1:], 11, {}, "whether class 1 is '10' or '2'"),
        (["a2", "a10"], 2, {}, "whether class 0 is 'a10' or 'a2'"),
        (["1", "01"], 2, {}, "has class 1 twice, as '01' and '1'"),
        (["n1", "tench"], 2, {"n1": 0, "tench": 0}, "0 twice, as 'n1' and 'tench'"),
        (["0", "12"], 12, {}, "folder .* has 2 classes, none .* model's 12"),
        (["cat", "dog"], 2, {"cat": 1}, "class 'cat', which is class 1 .* lacks 'dog'"),
    ],
)
def test_an_order_that_nothing_settles(tmp_path, names, classes, known, message):
    data = f"folder:{folder(tmp_path, *names)}"
    with pytest.raises(InputError, match=message):
        open_source(data, "val", num_classes=classes, labels_by_name=known)


def test_numbers_are_no_other_names_of_a_models_classes():
    names = ("ant", "bee", "cat")
    assert class_names.other_class(names, ("0", "1", "2")) is None
    assert class_names.other_class(names, (None, "1", None)) is None
    assert class_names.other_class(names, ("1", "2", "3")) == (0, "ant", "1")
    assert class_names.other_class(("0", "1", "10"), ("0", "1", "2")) == (2, "10", "2")
    line = class_names.mapped_classes((None, "1", None), "folder:x", names)
    assert line == (
        "the one folder of folder:x is mapped by number to the model's 3 classes: 1 is "
        "1 (bee)"
    )


# é, as Linux and Windows write it and as macOS does.
COMPOSED = "caf\u00e9"
DECOMPOSED = "cafe\u0301"


def test_names_are_the_same_in_either_spelling_of_unicode(tmp_path):
    for split, name in (("train", COMPOSED), ("val", DECOMPOSED)):
        for each in (name, "cafz"):
            (tmp_path / split / each).mkdir(parents=True)
            Image.new("RGB", (16, 16)).save(tmp_path / split / each / "0.png")
    data = f"folder:{tmp_path}"
    for split in ("train", "val"):  # é is behind z, and e before it
        source = open_source(data, split, num_classes=2)
        assert source.class_names == ("cafz", COMPOSED)
        label = {source.name(i).split("/")[-2]: source.read(i)[1] for i in range(2)}
        assert label.pop("cafz") == 0
        assert [*label.values()] == [1]
    for names in ((COMPOSED, "cafz"), (DECOMPOSED, "cafz")):
        known = class_names.labels_by_name(names, 2)
        source = open_source(data, "val", num_classes=2, labels_by_name=known)
        assert source.class_names == (COMPOSED, "cafz")
        assert class_names.other_class(names, source.class_names) is None
    table = tmp_path / "set.csv"
    rows = [f"val/{COMPOSED}/0.png,1,{DECOMPOSED}", f"train/{DECOMPOSED}/0.png,1,"]
    table.write_text("\n".join(["filename,label,class", rows[0], rows[1] + COMPOSED]))
    source = open_source(f"csv:{table}", "val", num_classes=2)
    assert source.class_names == (None, COMPOSED)
    assert source.read(0)[1] == 1
    rows[1] = f"val/{DECOMPOSED}/0.png,1,"
    table.write_text("\n".join(["filename,label,class", rows[0], rows[1] + COMPOSED]))
    with pytest.raises(InputError, match="line 3 names .* again"):
        open_source(f"csv:{table}", "val", num_classes=2)
    (tmp_path / "val" / COMPOSED).mkdir()
    with pytest.raises(InputError, match=f"class '{COMPOSED}' twice, in two spellings"):
        open_source(data, "val")


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """Folders 0 to 11, and a run that was trained on them in the order of text."""
    data = folder(tmp_path_factory.mktemp("numbered"), *WHOLE)
    workdir = tmp_path_factory.mktemp("runs") / "old"
    config = configured(num_classes=12, **{"data.name": f"folder:{data}"})
    run_dir.record_start(workdir, RunConfig.from_config(config).to_dict())
    run_dir.record_classes(workdir, AS_TEXT)
    (workdir / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n')
    return config, workdir


@pytest.mark.parametrize(
    "fields, resumed, names",
    [
        ({}, True, AS_TEXT),
        ({}, False, WHOLE),
        ({"init.weights": "old"}, False, AS_TEXT),
        ({"init.weights": "old", "init.fresh": ("head",)}, False, WHOLE),
        ({"teacher.weights": "old"}, False, AS_TEXT),
    ],
    ids=["resumed", "new", "started", "fresh", "taught"],
)
def test_an_old_run_keeps_the_order_of_its_classes(
    numbered, tmp_path, fields, resumed, names
):
    """And so do those that start from its head, or learn from it."""
    config, old = numbered
    config = config.copy_and_resolve_references()
    config.batch_size = 24
    fields = {k: str(old) if v == "old" else v for k, v in fields.items()}
    config.update_from_flattened_dict(fields)
    run = RunConfig.from_config(config)
    start = InitialWeights(run)
    workdir = old if resumed else tmp_path / "new"
    data = Data(run, Placement(), start.labels_by_name(workdir))
    assert [*data.train.class_names] == names
    for source in (data.train, data.test):
        files = [file.decode().split("/")[1] for file in source.files]
        assert files == [names[label] for label in source.labels]
    start.check_classes(workdir, data.train.class_names, resumed)


def test_evaluate_maps_folders_to_imagenets_classes(assets):
    """Ten classes of ImageNet's, as folders of WordNet IDs."""
    words = [f"{assets}/weights/deit_tiny_patch16_224.npz", "--limit=20"]
    words.insert(1, f"folder:{assets}/data/imagenette_mini")
    ended = call(evaluate.main, *words, "--workers=0", "--dtype=float32").ok()
    assert "by name to the model's 1000 classes: n01440764 (tench) is 0\n" in ended.out
    assert float(re.search(r"acc1 ([\d.]+) %", ended.out)[1]) >= 50


@pytest.mark.parametrize(
    "weights, fresh, names, resumed, nameless",
    [
        ("run", (), ("ant", "bee"), False, None),
        ("run", (), ("bee", "cat"), True, None),  # it starts from its own weights
        ("run", ("head",), ("bee", "cat"), False, None),
        ("run", ("head",), None, False, None),
        ("run", (), None, True, None),
        ("run", (), None, False, "config.data.name 'digits'"),
        ("old", (), ("ant", "bee"), False, "config.init.weights {old}"),
        ("file", (), None, False, None),
    ],
)
def test_a_start_says_where_names_cannot_be_compared(
    run, tmp_path, capsys, weights, fresh, names, resumed, nameless
):
    places = {"run": run, "old": tmp_path / "old", "file": tmp_path / "w.npz"}
    unnamed(run, places["old"])
    np.savez(places["file"], **timm_tensors.to_timm(load.load(run).variables))
    config = configured(**{"init.weights": str(places[weights]), "init.fresh": fresh})
    initial(config).check_classes(tmp_path, names, resumed=resumed)
    said = f"note: classes are compared by number alone: {nameless} does not name them"
    noted = f"{said.format(**places)}\n" if nameless else ""
    assert capsys.readouterr().out == noted
