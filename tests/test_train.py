"""train.py: its config, and errors for a wrong command line."""

import json
import re

import pytest

import train
from configs import _run, base
from imagepiece_jax.errors import InputError
from imagepiece_jax.training.config import RunConfig
from tests.helpers import small_runs
from tests.helpers.run_command import start
from tests.helpers.small_runs import ROOT

README = ROOT / "README.md"
QUICKSTART = "--config=configs/quickstart.py"


@pytest.mark.parametrize(
    "words, message",
    [
        ([QUICKSTART, "--config.model.arch.gelo=tanh"], "config.model.arch.gelu?"),
        ([QUICKSTART, "--config.reduction.r=8"], "did you mean config.reduction?"),
        ([QUICKSTART, "--config.lr=fast"], "config.lr is 'fast'; it must be of type"),
        ([QUICKSTART, "--noconfig.data.flap"], "config.data.flip?"),
        ([QUICKSTART, "--config.lr=-1"], "config.lr is -1.0"),
        (
            [QUICKSTART, "--config.data.name=nowhere"],
            "config.data: 'nowhere' is no data set",
        ),
        (
            ["--config=configs/quick.py"],
            "error: No such file or directory: 'configs/quick.py'; the configs are",
        ),
        ([QUICKSTART, "--config.learning_rate=1e-3"], "did you mean config.lr?"),
        ([QUICKSTART, "--config.momentum=0.9"], "training/config.py has all fields"),
        ([QUICKSTART, "--config.epochs=4"], "warmup_epochs is 4.0; it must be below"),
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


@pytest.mark.parametrize(
    "words, message",
    [
        (["--help"], "--workdir: folder of the run"),
        ([QUICKSTART, "--config.larning=1"], ""),
    ],
)
def test_help_and_a_mistyped_flag_import_no_jax(words, message):
    ended = start("-X", "importtime", "train.py", *words)
    assert message in ended.out
    assert "ml_collections" in ended.err
    assert "| jax\n" not in ended.err.replace(" ", "").replace("|", "| ")


def test_a_run_is_resumed_by_its_folder(tmp_path, monkeypatch):
    fields = {"epochs": 7, "model.mean": (0.1, 0.2, 0.3), "model.std": (1.0, 1.0, 1.0)}
    fields |= {"init.fresh": ("head",), "init.weights": "w.npz"}
    config = RunConfig.from_config(small_runs.quickstart_config({}, fields))
    written = config.to_dict()
    (tmp_path / "config.json").write_text(json.dumps(written))
    words = ["train.py", f"--workdir={tmp_path}"]
    with_config = train.with_own_config(words)
    assert with_config[2:] == words[1:]
    reader, folder = with_config[1].removeprefix("--config=").split(":")
    assert folder == str(tmp_path)
    restored = RunConfig.from_config(_run.get_config(folder))
    assert restored == config
    assert json.dumps(restored.to_dict()) == json.dumps(written)
    for more_words in (["--config=configs/quickstart.py"], ["--config", "x.py"]):
        assert train.with_own_config([*words, *more_words]) == [*words, *more_words]
    assert len(train.with_own_config(["train.py", "--workdir", str(tmp_path)])) == 4
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="format"):
        train.with_own_config(words)
    nowhere = ["train.py", "--workdir=nowhere"]
    assert train.with_own_config(nowhere) == nowhere


@pytest.mark.parametrize(
    "typed, words",
    [
        (("(head,)",), ("head",)),
        (("(head,reducer)",), ("head", "reducer")),
        (("head,reducer",), ("head", "reducer")),
        (("['head']",), ("head",)),
        (("patch_embed.proj", "head"), ("patch_embed.proj", "head")),
        ((), ()),
    ],
)
def test_names_need_no_quotes(typed, words):
    config = base.get_config()
    config.init.fresh = typed
    before = config.data.area
    train.split_words(config)
    assert config.init.fresh == words
    assert config.data.area == before


def test_the_dry_run_of_readme_needs_no_data(tmp_path):
    (line,) = re.findall(r"^python (train.py .* --dry_run)$", README.read_text(), re.M)
    fields = {"model.depth": 1, "model.embed_dim": 16, "model.num_heads": 2}
    fields |= {"image_size": 32, "remat": False, "batch_size": 8, "reduction": "none"}
    fields |= {"augment.layers": 0, "augment.erase_prob": 0.0, "model.stem": "patch"}
    words = [f"--config.{name}={value}" for name, value in fields.items()]
    words = [*line.split(), *words, "--workdir", tmp_path / "run"]
    ended = start(*words, imported=True, TFDS_DATA_DIR=str(tmp_path))
    assert ended.status == 0, ended.err
    assert "1,281,167 training images, 50,000 validation images" in ended.out
    for phrase in ("memory on each", "EFLOP (", "learning rate: ", " steps: "):
        assert phrase in ended.out
    assert " (0.0005 per 512 images) after a warm-up" in ended.out
    assert "for cpu, unlike that for another device" in ended.out
    # TFDS logs nothing about the missing data set.
    assert set(ended.lines) <= {"compiling the training step .."}
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "word, read, name",
    [
        ("--config=configs/deit_s_tome.py", "deit_s.py:deit_s,tome", "deit_s_tome"),
        ("configs/deit_s_mctf.py:deit_ti", "deit_s.py:deit_ti,mctf", "deit_ti_mctf"),
        ("configs/deit_s_evit.py:deit_ti", "deit_s_evit.py:deit_ti", "deit_ti_evit"),
        ("x/deit_s.py:deit_b,tome:r=8", "deit_s.py:deit_b,tome:r=8", "deit_b_tome_r_8"),
        ("configs/quickstart.py", "quickstart.py", "quickstart"),
    ],
)
def test_former_config_files_become_arguments(word, read, name, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = train.replace_old_name(word)
    assert path == word.rpartition("/")[0] + "/" + read
    assert train.run_name(path.removeprefix("--config=")) == name
