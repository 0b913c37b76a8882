"""Mistakes are found at the start: one sentence, before a compile, nothing written."""

import json
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

import train
from configs import quickstart
from imagepiece_jax import describe
from imagepiece_jax.common import parallel
from imagepiece_jax.evaluate import __main__ as evaluate
from imagepiece_jax.models import convert, summary
from imagepiece_jax.training import from_config, initial_weights
from tests.command import call, sentence, start
from tests.runs import ROOT

QUICKSTART = ROOT / "configs" / "quickstart.py"
WORKDIR = pathlib.Path("run")


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def compiled():
    """Names of the programs that XLA compiles during a test."""
    names = []

    def listen(event, seconds, fun_name="", **_):
        if event.endswith("backend_compile_duration"):
            names.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


def refused(compiled, *words):
    """What train.py says about these overrides; nothing else may have happened."""
    before = sorted(pathlib.Path().rglob("*"))
    overrides = [f"--config.{word}" for word in words]
    ended = call(train.main, "--config", QUICKSTART, "--workdir", WORKDIR, *overrides)
    # Small programs that make a random key may run, those with a model may not.
    assert not [name for name in compiled if "init" in name or "step" in name]
    assert sorted(pathlib.Path().rglob("*")) == before
    return sentence(ended)


def test_a_compiled_model_would_be_seen(compiled):
    config = quickstart.get_config()
    config.model.depth = 1
    config.reduction.merge_blocks = config.reduction.prune_blocks = ()
    initial_weights.fresh(from_config.model(config), 16, seed=0)
    assert [name for name in compiled if "init" in name]


@pytest.mark.parametrize(
    "word, told",
    [
        (
            "model.name=vit_huge",
            "config.model.name is 'vit_huge'; the models are deit_b, deit_s, deit_ti,",
        ),
        (
            "reduction.name=magic",
            "config.reduction.name is 'magic'; the methods are dynamicvit, evit, grid_",
        ),
        (
            "reduction.name=evit",
            "config.reduction.candidate_ratio is not a field of 'evit', which has ",
        ),
        (
            "reduction.keep_rate=1.5",
            "config.reduction.keep_rate is 1.5; allowed are numbers from 0 to 1",
        ),
        (
            "reduction.merge_ratio=-0.1",
            "config.reduction.merge_ratio is -0.1; allowed are numbers from 0 to 1",
        ),
        (
            "reduction.candidate_ratio=2",
            "config.reduction.candidate_ratio is 2.0; allowed are numbers from 0 to 1",
        ),
        (
            "reduction.schedule=C",  # although both lists of blocks override it
            "config.reduction.schedule is 'C'; allowed are 'A', 'B'",
        ),
        (
            "reduction.metric=value2",
            "config.reduction.metric is 'value2'; allowed are 'key', 'query', 'value',",
        ),
        (
            "reduction.merge_blocks=(0, 6)",
            "config.reduction has a step at block 6, but the model has blocks 0 to 5",
        ),
        (
            "reduction.prune_blocks=(0,)",
            "config.reduction has two steps at block 0; allowed is one a block",
        ),
        (
            "image_size=15",
            "config.image_size is 15; allowed are multiples of config.model.patch_size",
        ),
        (
            "model.patch_size=3",
            "config.image_size is 16; allowed are multiples of config.model.patch_size",
        ),
        ("image_size=0", "config.image_size is 0; allowed are 1 or more"),
        (
            "model.stem=linear",
            "config.model.stem is 'linear'; the stems are patch, conv",
        ),
        (
            "model.dtype=int8",
            "config.model.dtype is 'int8'; allowed are float32, bfloat16, float16",
        ),
        (
            "model.dtype=float16",
            "config.model.dtype is 'float16', in which small gradients vanish; allowed",
        ),
        (
            "model.attention=flash",
            "config.model.attention is 'flash'; allowed are",
        ),
        (
            "model.num_heads=3",
            "config.model.num_heads is 3; allowed are divisors of config.model.embed_d",
        ),
        (
            "model.drop_path_rate=1",
            "config.model.drop_path_rate is 1.0; allowed are numbers from 0 to below 1",
        ),
        (
            "batch_size=0",
            "config.batch_size is 0; allowed are 1 or more",
        ),
        (
            "batch_size=1439",
            "config.batch_size is 1439, but the training data has only 1438 images: al",
        ),
        ("seed=-1", "config.seed is -1; allowed are 0 to 4294967295"),
        ("lr=-1", "config.lr is -1.0; allowed are 0 or more"),
        ("lr=nan", "config.lr is 'nan'; allowed are finite numbers"),
        (
            "warmup_epochs=99",
            "config.warmup_epochs is 99.0; allowed are 0 to config.epochs, ",
        ),
        ("lr_offset=2", "config.lr_offset is 2; allowed are 0 (a rate for each itera"),
        (
            "betas=(0.9,)",
            "config.betas is (0.9,); allowed are two numbers from 0 to be",
        ),
        (
            "data.area=(0.5, 0.1)",
            "config.data.area is (0.5, 0.1); allowed are two shares of the image",
        ),
        (
            "data.crop=wild",
            "config.data.crop is 'wild': allowed are random_resized, shift, none",
        ),
        ("data.resize=big", "config.data.resize is 'big': allowed are deit, none"),
        (
            "data.name=digit",
            "config.data.name is 'digit': allowed are imagenet2012, digits, folder:",
        ),
        (
            "num_classes=9",
            "config.num_classes is 9, but data set digits has 10 classes",
        ),
        (
            "init.fresh=head",
            "config.init.fresh is ('head',), so the rest has been trained, but config.",
        ),
        ("init.weights=no.npz", "weights no.npz: no such file or folder"),
    ],
)
def test_config_that_does_not_fit(compiled, word, told):
    assert refused(compiled, word).startswith(told)


def test_batch_that_does_not_divide(compiled, monkeypatch):
    told = "config.batch_size is 128: it must be a positive multiple of devices * "
    said = refused(compiled, "batch_size=128", "grad_accum_steps=3")
    assert said == f"{told}accumulation steps = 1 * 3"
    monkeypatch.setattr(parallel, "local_devices", lambda: jax.local_devices() * 3)
    told = "config.batch_size is 128: it must be a positive multiple of devices * "
    assert refused(compiled, "batch_size=128") == (f"{told}accumulation steps = 3 * 1")


def image_folder(*files):
    """Image files of 16x16 with their folders; a name that ends in / is a folder."""
    for file in map(pathlib.Path, files):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16)).save(file)


@pytest.mark.parametrize(
    "files, classes, told",
    [
        ([], 2, "folder set/train cannot be read (No such file or directory): folder:"),
        (
            ["set/train/a/1.png", "set/train/b/1.png"],
            3,
            "config.num_classes is 3, but folder set has 2 classes",
        ),
        (
            ["set/train/a/1.png", "set/train/b/1.png", "set/val/a/1.png"],
            2,
            "folder set has class 'b' in only one of train and val: both must have",
        ),
    ],
)
def test_image_folder_that_does_not_fit(compiled, files, classes, told):
    image_folder(*files)
    said = refused(compiled, "data.name=folder:set", f"num_classes={classes}")
    assert said.startswith(told)


def test_empty_image_folders(compiled):
    for name in ("set/train/a", "set/val/a"):
        pathlib.Path(name).mkdir(parents=True)
    said = refused(compiled, "data.name=folder:set", "num_classes=1")
    assert said.startswith("folder set/train/a holds no image: allowed are .jpg, .jpe")
    pathlib.Path("set/train/a").rmdir()
    said = refused(compiled, "data.name=folder:set", "num_classes=1")
    assert said.startswith("folder set/train is empty: it must hold one folder of im")


@pytest.mark.parametrize(
    "row, told",
    [
        ("1.png,2", "set.csv line 2 has label '2': allowed are the whole numbers 0..1"),
        (
            "1.png,-1",
            "set.csv line 2 has label '-1': allowed are the whole numbers 0..",
        ),
        ("1.png,cat", "set.csv line 2 has label 'cat': allowed are the whole numbers"),
        ("2.png,0", "set.csv line 2 names '2.png', which is no file: filename must be"),
    ],
)
def test_label_and_file_of_a_csv(compiled, row, told):
    image_folder("1.png")
    pathlib.Path("set.csv").write_text(f"filename,label,split\n{row},train\n")
    assert refused(compiled, "data.name=csv:set.csv", "num_classes=2").startswith(told)


def test_imagenet_that_was_not_prepared(compiled):
    """How to prepare it, and what runs without it."""
    said = refused(
        compiled, "data.name=imagenet2012", "num_classes=1000", "data.dir=nowhere"
    )
    assert "config.data.dir nowhere does not hold it" in said
    assert "imagepiece_jax.prepare --source" in said and "configs/quickstart.py" in said


def test_weights_files(compiled):
    """Truncated, of another width, of other classes, and no weights at all."""
    config = quickstart.get_config()
    variables = summary.shapes(from_config.model(config), 16)
    tensors = convert.to_timm(
        jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), variables)
    )
    np.savez("whole.npz", **tensors)
    whole = pathlib.Path("whole.npz").read_bytes()
    pathlib.Path("half.npz").write_bytes(whole[: len(whole) // 2])
    said = refused(compiled, "init.weights=half.npz")
    assert said.startswith(
        "weights file half.npz is damaged, truncated or no .npz file"
    )
    said = refused(compiled, "init.weights=whole.npz", "model.embed_dim=32")
    assert said == (
        "weights file whole.npz: it holds a model of depth 6 and width 64, this one "
        "has depth 6 and width 32"
    )
    said = refused(compiled, "init.weights=whole.npz", "init.fresh=tail")
    assert said.startswith("weights file whole.npz: config.init.fresh names 'tail'")
    pathlib.Path("w.txt").touch()
    said = refused(compiled, "init.weights=w.txt")
    assert said.startswith("weights file w.txt ends in '.txt': only .npz, .safetensors")


def test_workdir_of_another_run(compiled):
    config = quickstart.get_config()
    config.lr = 0.5
    WORKDIR.mkdir()
    saved = WORKDIR / "config.json"
    saved.write_text(json.dumps(config.to_dict()))
    assert refused(compiled, "lr=0.25") == (
        "run holds a run with lr = 0.5, but this config has 0.25: choose another "
        "--workdir, or go back to the old value"
    )
    assert list(WORKDIR.iterdir()) == [saved]


def test_what_may_change_is_no_other_run(compiled):
    """The fields of `MAY_CHANGE` differ; the file that is missing stops this start."""
    config = quickstart.get_config()
    config.log_every_steps, config.data.workers = 7, 3
    config.init.weights = "no.npz"
    WORKDIR.mkdir()
    (WORKDIR / "config.json").write_text(json.dumps(config.to_dict()))
    said = refused(compiled, "init.weights=no.npz")
    assert said == "weights no.npz: no such file or folder"


@pytest.mark.parametrize("command", [describe, evaluate])
def test_other_commands_find_the_same_mistakes(compiled, command):
    words = ["--config", QUICKSTART, "--config.reduction.keep_rate=1.5"]
    words += ["--weights=w.npz"] if command is evaluate else []
    told = "config.reduction.keep_rate is 1.5; allowed are numbers from 0 to 1"
    assert sentence(call(command.main, *words)) == told
    words[2] = "--config.epochs=0"
    told = "config.epochs is 0; allowed are 1 or more"
    assert sentence(call(command.main, *words)) == told
    assert compiled == []


@pytest.mark.parametrize(
    "words, told",
    [
        (
            ["--config.reduction.keep_rate=-1"],
            "config.reduction.keep_rate is -1.0; allowed are numbers from 0 to 1",
        ),
        (
            ["--config.batch_size=20"],
            "config.batch_size is 20: it must be a positive multiple of devices * "
            "accumulation steps = 8 * 1",
        ),
        (
            ["--num_processes=2"],
            "--coordinator is missing although --num_processes is 2",
        ),
    ],
)
def test_in_a_process_of_its_own(words, told):
    """Eight devices, nothing in this process's state, and the real exit status."""
    ended = start(
        ROOT / "train.py",
        f"--config={QUICKSTART}",
        *words,
        XLA_FLAGS="--xla_force_host_platform_device_count=8",
    )
    assert sentence(ended).startswith(told)
    assert list(pathlib.Path().iterdir()) == []
