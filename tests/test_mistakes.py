import dataclasses
import importlib

import pytest

import imagepiece_jax
from imagepiece_jax.common import timer
from tests.helpers import tiny_vit
from tests.helpers.picture_files import noise, write_csv, write_plain
from tests.helpers.run_command import call

TYRO = "For full helptext"  # in each of its boxes
MISTAKES = [
    # tyro's
    ("predict", 2, "WEIGHTS"),
    ("predict weights a.png --topp 3", 2, "--top"),
    ("compare --wieghts weights", 2, "mean WEIGHTS?"),
    ("evaluate weights digits --limit 1.5", 2, "1.5"),
    ("recover weights digits --out x --parameters heads", 2, "heads"),
    # weights
    ("predict no.pth a.png", 2, "no.pth"),
    ("predict photos a.png", 2, "photos"),
    ("predict bare.npz a.png", 2, "bare.npz"),
    ("describe deit_xs", 2, "deit_xs"),
    ("predict weights a.png --reduction evit", 2, "blocks"),
    ("predict weights a.png --reduction dynamicvit:blocks=(1,)", 2, "training"),
    ("predict weights a.png --reduction peaks:score=probe:blocks=(1,)", 2, "pooling"),
    ("describe deit_ti --reduction peaks:macs=.01", 2, "nearest"),
    ("predict weights a.png --checkpoint best", 2, "checkpoint"),
    ("predict weights a.png --averaged", 2, "averaged"),
    ("predict weights a.png --config deit_ti", 2, "shape"),
    ("predict weights a.png --num-classes 7", 2, "--num-classes"),
    ("predict weights a.png --image-size big", 2, "big"),
    ("describe deit_ti --reduction 50%", 2, "share"),
    ("describe fake.pth", 2, "damaged"),
    ("predict a.png a.png", 2, ".safetensors"),  # no weights
    ("evaluate m.onnx digits --crop 0.9", 2, "export the weights again"),
    # images
    ("predict weights", 2, "give images"),
    ("features photos --out x.sqlite", 2, "weights"),
    ("predict weights no.png", 2, "no.png"),
    ("predict weights damaged.png", 1, "damaged.png"),
    ("predict weights empty", 2, "empty"),
    ("recover weights a.png --out x", 2, "images"),
    ("evaluate weights", 2, "data"),
    ("evaluate weights a.png", 2, "a.png"),
    ("evaluate weights photos61", 2, "'photos61' is no data set"),
    ("evaluate weights csv:none.csv", 2, "none.csv"),
    ("evaluate named csv:named.csv", 2, "drop its column 'class'"),
    ("evaluate weights photos", 2, "`compare` needs no labels"),
    ("evaluate weights csv:unlabeled.csv", 2, "`compare` needs no labels"),
    ("evaluate weights csv:other.csv", 2, "12"),
    ("evaluate weights imagenet2012", 2, "1000"),
    ("evaluate encoder digits", 2, "classes"),
    # values
    ("evaluate weights digits --gelu tanh", 2, "optimized"),
    ("evaluate weights digits --limit 0", 2, "limit"),
    ("compare weights digits --reductions .6 .60", 2, "again"),
    ("compare weights digits --reduction .6", 2, "--reductions .6"),
    ("compare weights digits --reductions random", 2, "blocks"),
    ("compare weights digits --image-sizes 16", 2, "16"),
    ("compare weights photos", 2, "12"),  # of one image
    ("compare encoder digits --limit 11", 2, "12"),
    ("visualize weights a.png --out x --blocks 9", 2, "9"),
    ("visualize weights a.png --out x --reduction .5 --reductions .6", 2, "reductions"),
    ("recover weights digits --out x --minutes 1 --steps 2", 2, "minutes"),
    ("recover none digits --out x --steps 0", 2, "steps"),  # before loading
    ("recover weights digits --out x --reduction evit:blocks=()", 2, "tokens"),
    ("export weights x.onnx --images", 2, "images"),
    # files
    ("predict weights a.png --json a.txt", 2, "a.txt"),
    ("predict weights a.png --json no/a.json", 2, "no/a.json"),
    ("predict weights a.png --json weights/config.json", 2, "config.json"),
    ("evaluate weights csv:set.csv --json set.csv", 2, "set.csv"),
    ("features weights a.png --out x.sqlite --batch-size 0", 2, "batch_size"),
    ("features weights a.png --out x.sqlite --threads -1", 2, "threads"),
    ("describe deit_ti --averaged", 2, "averaged"),
    ("describe deit_ti --config deit_s", 2, "config"),
    ("describe deit_ti --reduction tome:r=-1" + "0" * 400, 2, "r"),
    ("recover weights digits --out photos", 2, "photos"),
    ("export weights m.pth", 2, "folder"),
    ("export weights no/m.onnx", 2, "no"),
    ("export weights m.onnx --dtype bfloat16", 2, "--dtype"),
    ("export weights m --dtype int8", 2, "--images"),
    ("export weights m --images photos", 2, "12"),
    ("export encoder m --layout immich --dtype int8 --images photos", 2, "has 1"),
    ("export weights m --layout photos", 2, "immich"),
    ("export weights m --layout fastembed", 2, "--num-classes"),
    ("visualize weights a.png --out photos", 2, "photos"),
    ("compare weights digits --out a.png/below", 2, "a.png"),
    ("features weights a.png --out a.png", 2, "a.png"),
    ("export weights a.png", 2, "a.png"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mistakes")
    vit = tiny_vit.pretrained(num_classes=10, image_size=16)
    imagepiece_jax.save(vit, folder / "weights")
    encoder = tiny_vit.pretrained(num_classes=0, image_size=16)
    imagepiece_jax.save(encoder, folder / "encoder")
    tiny_vit.write(folder / "bare.npz", vit.variables)
    (folder / "empty").mkdir()
    write_plain(folder, "a.png", "photos/b.png")
    pixels = noise(2, 16, 16)
    for name in ("damaged.png", "fake.pth"):
        (folder / name).write_bytes(b"nothing")
    (folder / "a.txt").write_text("mine")
    write_csv(folder, pixels, [0, 12])
    (folder / "set.csv").rename(folder / "other.csv")
    named = dataclasses.replace(vit, class_names=[*"abcdefghij"])
    imagepiece_jax.save(named, folder / "named")
    (folder / "named.csv").write_text("filename,label,class\na.png,0,tench\n")
    (folder / "unlabeled.csv").write_text("filename\na.png\n")
    write_csv(folder, pixels, [0, 1])
    return folder


def read_files(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.mark.parametrize("line, status, word", MISTAKES, ids=str)
def test_a_mistake_is_one_sentence(folder, monkeypatch, line, status, word):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(timer, "time_in_turns", lambda *_: pytest.fail("measured"))
    before = read_files(folder)
    name, *words = line.split()
    main = importlib.import_module(f"imagepiece_jax.commands.{name}").main
    ended = call(main, *words)
    assert ended.status == status, ended
    assert word in ended.err, ended
    assert "[bold]" not in ended.err  # markup
    if TYRO not in ended.err:
        errors = [x for x in ended.err.splitlines() if x.startswith("error: ")]
        assert len(errors) == 1 and ended.err.endswith(f"{errors[0]}\n"), ended
    assert read_files(folder) == before
