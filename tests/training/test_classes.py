"""A run knows its classes by name, and whoever uses it is told of other ones."""

import functools
import json
import re

import numpy as np
import pytest
from PIL import Image

import imagepiece_jax
from experiments import __main__ as experiments
from imagepiece_jax.commands import evaluate, train
from imagepiece_jax.data import class_names
from imagepiece_jax.data.registry import open_source
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.variables import variable_shapes
from imagepiece_jax.pretrained import load
from imagepiece_jax.pretrained.runs import CLASSES, read_class_names
from imagepiece_jax.training import run_dir
from imagepiece_jax.training.checkpoint import Checkpoints
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.training.initial_weights import InitialWeights
from tests import runs
from tests.command import call, sentence
from tests.models import tiny
from tests.refused import refused

SIZE = {"depth": 1, "embed_dim": 8, "num_heads": 2}
BLOCKS = {"merge_blocks": (), "prune_blocks": ()}
SMALL = {f"model.{name}": value for name, value in SIZE.items()}
SMALL |= {f"reduction.{name}": value for name, value in BLOCKS.items()}
WORDS = [f"--config={runs.ROOT}/configs/quickstart.py", "--config.num_classes=2"]
WORDS += [f"--config.{name}={value}" for name, value in SMALL.items()]
SAME = "allowed: the same classes in the same order"


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
    run_dir.record_start(workdir, config.to_dict())
    run_dir.record_classes(workdir, ("ant", "bee"))
    model = RunConfig.from_config(config).create_model()
    variables = tiny.fill(variable_shapes(model, 16))
    checkpoints = Checkpoints(workdir)
    checkpoints.save(1, variables, {}, "best")
    checkpoints.save(1, variables, {})
    checkpoints.close()
    return workdir


def unnamed(run, path):
    """A run of an earlier version, which kept no names."""
    path.mkdir()
    for entry in run.iterdir():
        if entry.name != CLASSES:
            (path / entry.name).symlink_to(entry)
    return path


def test_names_are_kept_and_read_or_refused(tmp_path):
    assert read_class_names(tmp_path, 3) is None
    run_dir.record_classes(tmp_path, None)
    assert not list(tmp_path.iterdir())
    run_dir.record_start(tmp_path, configured(num_classes=3).to_dict())
    names = ("ant", None, "Käfer \ufffd")
    run_dir.record_classes(tmp_path, names)
    assert read_class_names(tmp_path, 3) == names
    assert "Käfer" in (tmp_path / "classes.json").read_text(encoding="utf-8")
    run_dir.record_classes(tmp_path, names[:2])
    with refused("class_names", 2, "classes.json", "3 classes"):
        read_class_names(tmp_path, 3)
    (tmp_path / "classes.json").write_text('{"0": "ant"}')
    with refused("class_names", {"0": "ant"}, "classes.json"):
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
    weights = load.read_metadata(run).names_of_data
    assert class_names.other_class(weights, names) == other


@pytest.mark.slow
def test_evaluate_says_where_names_cannot_be_compared(run, tmp_path):
    words = [*WORDS, "--config.model.dtype=float32"]
    data = f"folder:{folder(tmp_path / 'set', 'ant', 'bee')}"
    (tmp_path / "set.csv").write_text("filename,label\nset/val/ant/0.png,0\n")
    table, old = f"csv:{tmp_path}/set.csv", unnamed(run, tmp_path / "old")
    outputs = {}
    for weights_path, name in ((run, data), (run, table), (old, data)):
        ended = call(
            evaluate.main, *words, f"--weights={weights_path}", "--data", name
        ).ok()
        outputs[weights_path, name] = ended.out.splitlines()
    message = "note: classes are compared by number alone: {} does not name them"
    assert len(outputs[run, data]) == 1
    assert outputs[run, table][0] == message.format(table)
    assert outputs[old, data][0] == message.format(old)
    assert outputs[old, data][1].startswith("acc1 ")


@pytest.fixture(scope="module")
def saved(run, tmp_path_factory):
    """The run as `save` writes it."""
    path = tmp_path_factory.mktemp("saved") / "insects"
    return imagepiece_jax.save(path, imagepiece_jax.load(run))


def test_names_of_a_saved_folder_are_compared_as_those_of_its_run(saved, tmp_path):
    assert load.read_metadata(saved).names_of_data == ("ant", "bee")
    for field in ("init.weights", "teacher.weights"):
        start = initial(configured(**{field: str(saved), "data.name": "folder:x"}))
        with pytest.raises(InputError, match=f"^config.{field} .*class 1 is 'bee'"):
            start.check_classes(tmp_path, ("ant", "wasp"))
        start.check_classes(tmp_path, ("ant", "bee"))


EVALUATE = evaluate.main, ["--data={data}", *WORDS]
BATCHES = ["--config.batch_size=2", "--config.eval_batch_size=2"]
RUN = ["--config.data.name={data}", "--workdir={out}", *BATCHES, *WORDS]
TRAIN = train.main, RUN
TABLE = experiments.main, ["table1", "--data={data}", "--nospeed", "--out={out}"]
DATA = "config.data.name '{data}'; " + SAME
FRESH = DATA + "; or a new head by config.init.fresh=('head',)"
TEACHER = "config.teacher.weights {run}"


@pytest.mark.parametrize(
    "main, words, more, weights, data",
    [
        (*EVALUATE, ["--weights={run}"], "{run}", "{data}; " + SAME),
        (*EVALUATE, ["--weights={run}", "--optimized"], "{run}", "{data}; " + SAME),
        (*EVALUATE, ["--weights={saved}"], "{saved}", "{data}; " + SAME),
        (*TABLE, ["--weights={run}"], "{run}", "--data {data}"),
        (*TRAIN, ["--config.init.weights={run}"], "config.init.weights {run}", FRESH),
        (*TRAIN, ["--config.teacher.weights={run}"], TEACHER, DATA),
    ],
    ids=["evaluate", "optimized", "saved", "table", "init", "teacher"],
)
def test_other_classes_are_refused(
    run, saved, tmp_path, main, words, more, weights, data
):
    """The same number of classes, and so the same shapes."""
    images = f"folder:{folder(tmp_path / 'set', 'ant', 'wasp')}"
    places = {"run": run, "saved": saved, "data": images, "out": tmp_path / "out"}
    ended = call(main, *(word.format(**places) for word in words + more))
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
    names, lemmas = class_names.imagenet_names(), class_names.imagenet_lemmas()
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
    assert words[found["maillot"]] == "maillot" and "crane" not in found
    assert class_names.labels_by_name(None, 1000) == found
    assert class_names.labels_by_name(synsets, 1000)["tench"] == 0
    assert class_names.labels_by_name(None, 10) == {}
    found = class_names.labels_by_name(("bee", None, "wasp"), 3)
    assert (found["bee"], found["wasp"]) == (0, 2)


def test_folders_are_mapped_by_name_to_the_labels_of_a_model(tmp_path):
    data = f"folder:{folder(tmp_path, 'ant', 'n01440764')}"
    known = {"n01440764": 0, "ant": 2}
    source = open_source(data, "val", num_classes=3, labels_by_name=known)
    assert source.num_classes == 3 and source.class_names == ("n01440764", None, "ant")
    assert source.labels.tolist() == [2, 2, 0, 0]
    line = class_names.mapped_classes(source.class_names, data, ("tench", "bee", "ant"))
    assert line.startswith(f"the 2 folders of {data} are mapped by name to the model's")
    assert line.endswith(" 3 classes: n01440764 is 0 (tench)")
    for labels, message in (
        ({"n01440764": 0}, "class 'ant', which is not one of the model's 3"),
        ({"bee": 0}, "num_classes is 3, but folder .* 2 classes"),
    ):
        with pytest.raises(InputError, match=message):
            open_source(data, "val", num_classes=3, labels_by_name=labels)
    source = open_source(data, "val", num_classes=2, labels_by_name={"bee": 0})
    assert source.labels.tolist() == [0, 0, 1, 1]
    assert class_names.mapped_classes(source.class_names, data, None) is None


def test_evaluate_maps_folders_to_imagenets_classes(assets):
    """Ten classes of ImageNet's, as folders of WordNet IDs."""
    words = [f"--weights={assets}/weights/deit_tiny_patch16_224.npz", "--limit=20"]
    words += [f"--data=folder:{assets}/data/imagenette_mini", "--config.data.workers=0"]
    ended = call(evaluate.main, *words, "--config.model.dtype=float32").ok()
    assert "by name to the model's 1000 classes: n01440764 is 0 (tench)\n" in ended.out
    assert float(re.search(r"acc1 ([\d.]+) %", ended.out)[1]) >= 50


def test_evaluate_says_what_a_run_was_trained_with(run, tmp_path):
    data = folder(tmp_path / "set", "ant", "bee")
    words = [f"--weights={run}", f"--data=folder:{data}", f"--json={tmp_path}/r.json"]
    words += ["--config.model.dtype=float32", "--config.data.workers=0"]
    ended = call(evaluate.main, *words)
    assert ended.status == 0 and "trained with" not in ended.out, ended
    for file in data.rglob("*.png"):
        Image.new("RGB", (32, 32)).save(file)
    words += ["--config.image_size=32", "--config.reduction.name=tome"]
    ended = call(evaluate.main, *words, "--config.reduction.r=2").ok()
    changes = "reduction tome r=2 (trained with imagepiece merge_blocks=() prune_blocks"
    assert changes in ended.out.splitlines()[-1]
    assert "  size 32x32 (trained with 16x16)  " in ended.out.splitlines()[-1]
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["trained"]["reduction"]["name"] == "imagepiece"
    assert found["trained"]["image_size"] == 16


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
    np.savez(places["file"], **load.read(run).tensors)
    config = configured(**{"init.weights": str(places[weights]), "init.fresh": fresh})
    initial(config).check_classes(tmp_path, names, resumed=resumed)
    said = f"note: classes are compared by number alone: {nameless} does not name them"
    noted = f"{said.format(**places)}\n" if nameless else ""
    assert capsys.readouterr().out == noted
