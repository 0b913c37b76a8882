import json
import re
import shlex

import pytest

import imagepiece_jax
import train
from configs import _run, base
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.create import create_model
from imagepiece_jax.training import trainer
from imagepiece_jax.training.config import RunConfig
from tests.helpers import named_models, small_runs, tiny_vit
from tests.helpers.picture_files import noise, write_images
from tests.helpers.run_command import start
from tests.helpers.small_runs import ROOT
from tests.test_configs import parse_command

# config_flags reads files this way on Python 3.11.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module")

README = ROOT / "README.md"
QUICKSTART = "--config=configs/quickstart.py"


@pytest.mark.parametrize(
    "words, message",
    [
        ([QUICKSTART, "--config.model.arch.gelo=tanh"], "config.model.arch.gelu?"),
        ([QUICKSTART, "--config.reduction.r=8"], "did you mean config.reduction?"),
        ([QUICKSTART, "--config.lr=fast"], "config.lr is 'fast'; it must be of type"),
        ([QUICKSTART, "--config.lr=-1"], "config.lr is -1.0"),
        (["--config=configs/quick.py"], "'configs/quick.py'; the configs are"),
        ([QUICKSTART, "--config.learning_rate=1e-3"], "did you mean config.lr?"),
        ([QUICKSTART, "--config.momentum=0.9"], "training/config.py has all fields"),
        ([QUICKSTART, "--config.epochs=4"], "--config.warmup_epochs=0.4"),
        (["--config.lr=1", QUICKSTART], "config.lr"),
        ([QUICKSTART, "x"], "'x' belongs to no flag"),
        ([], "--config is missing"),
    ],
)
def test_a_mistake_is_one_sentence(words, message):
    ended = start("train.py", *words, imported=True)
    assert (ended.status, ended.out) == (2, "")
    assert ended.lines[0].startswith("error: ") and len(ended.lines) == 1
    assert message in ended.err


@pytest.mark.parametrize("words", [["--help"], [QUICKSTART, "--config.larning=1"]])
def test_help_and_a_mistyped_flag_import_no_jax(words):
    ended = start("-X", "importtime", "train.py", *words)
    modules = [line.rpartition("|")[2].strip() for line in ended.err.splitlines()]
    assert "ml_collections" in modules and "jax" not in modules
    assert ("--workdir" in ended.out) == ("--help" in words)


def test_a_run_is_resumed_by_its_folder(tmp_path, monkeypatch):
    fields = {"epochs": 7, "model.mean": (0.1, 0.2, 0.3), "model.std": (1.0, 1.0, 1.0)}
    fields |= {"init.fresh": ("head",), "init.weights": "w.npz"}
    config = RunConfig.from_config(small_runs.quickstart_config({}, fields))
    written = config.to_dict()
    (tmp_path / "config.json").write_text(json.dumps(written))
    words = ["train.py", f"--workdir={tmp_path}"]
    reader, folder = train.with_own_config(words)[1].split("=")[1].split(":")
    assert folder == str(tmp_path)
    restored = RunConfig.from_config(_run.get_config(folder))
    assert restored == config
    assert json.dumps(restored.to_dict()) == json.dumps(written)
    for own in (["--config", "x.py"], ["--config=x.py"]):
        assert train.with_own_config([*words, *own]) == [*words, *own]
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="earlier revision"):
        train.with_own_config(words)


@pytest.mark.parametrize(
    "typed", ["(head,reducer)", "head,reducer", "['head','reducer']"]
)
def test_names_need_no_quotes(typed):
    config = base.get_config()
    config.init.fresh = (typed,)
    before = config.data.area
    train.split_words(config)
    assert config.init.fresh == ("head", "reducer")
    assert config.data.area == before


def test_the_dry_run_of_readme_needs_no_data(tmp_path):
    (line,) = re.findall(r"^python (train.py .* --dry_run)$", README.read_text(), re.M)
    fields = {"model.depth": 1, "model.embed_dim": 16, "model.num_heads": 2}
    fields |= {"image_size": 32, "remat": False, "batch_size": 8, "reduction": "none"}
    fields |= {"augment.layers": 0, "augment.erase_prob": 0.0, "model.stem": "patch"}
    words = [f"--config.{name}={value}" for name, value in fields.items()]
    words = [*line.split(), *words, "--workdir", tmp_path / "run"]
    ended = start(*words, imported=True, TFDS_DATA_DIR=str(tmp_path)).ok()
    assert "1,281,167 training images" in ended.out
    for phrase in ("memory on each", "EFLOP (", "learning rate: ", " steps: "):
        assert phrase in ended.out
    assert " (0.0005 per 512 images) after a warm-up" in ended.out
    assert "for cpu, unlike that for another device" in ended.out
    # TFDS logs nothing about the missing data set.
    assert set(ended.lines) <= {"compiling the training step .."}
    assert not (tmp_path / "run").exists()


def test_run_names():
    assert train.run_name("configs/deit_s_evit.py:deit_ti") == "deit_ti_evit"
    assert train.run_name("x/deit_s.py:deit_b,tome:r=8") == "deit_b_tome_r_8"
    assert train.run_name("configs/quickstart.py") == "quickstart"


@pytest.fixture
def own_folder(tmp_path):
    """Four classes of nine training and two validation images, and one-block DeiT."""
    images = noise(4, 11, 64, 48)
    for name, class_images in zip("abcd", images, strict=True):
        write_images(tmp_path / "flowers" / "train" / name, class_images[:9])
        write_images(tmp_path / "flowers" / "val" / name, class_images[9:])
    model = create_model(named_models.config("deit_ti", depth=1))
    vit = imagepiece_jax.Pretrained(model, tiny_vit.variables(model))
    imagepiece_jax.save(vit, tmp_path / "start")
    return tmp_path


def test_an_own_folder_trains_as_the_page_says(own_folder):
    text = (ROOT / "docs" / "training.md").read_text().replace("\\\n", " ")
    block = text.partition("## Your own small folder, on a CPU")[2].split("```")[1]
    (line,) = re.findall(r"^python (train\.py .*)$", block, re.M)
    words = shlex.split(line.replace("deit_tiny_patch16_224-a1311bcf.pth", "start"))
    words[0] = ROOT / "train.py"
    words[words.index("--config") + 1] = ROOT / words[words.index("--config") + 1]
    words += ["--config.model.depth=1", "--config.epochs=1"]
    words.append("--config.warmup_epochs=0")
    assert "accuracy " in start(*words, cwd=own_folder, imported=True).ok().out


def test_mistakes_come_together_with_flags_that_mend_them(own_folder):
    words = ["--config=configs/deit_s.py:deit_ti", "--config.model.depth=1"]
    words += [f"--config.data.name={own_folder / 'flowers'}", "--config.epochs=3"]
    words.append("--config.num_classes=4")
    config = parse_command(shlex.join(words))
    with pytest.raises(InputError) as caught:
        trainer.set_up_run(RunConfig.from_config(config), own_folder / "run")
    flags = re.findall(r"--config\S+", str(caught.value))
    assert flags[0] == "--config.batch_size=32"
    assert len(flags) == len(str(caught.value).splitlines()) == 2
    mended = parse_command(shlex.join([*words, *flags]))
    trainer.set_up_run(RunConfig.from_config(mended), own_folder / "run")
