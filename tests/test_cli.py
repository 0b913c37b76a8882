"""Flags, overrides and the end of a command; tests/errors.txt has the sentences."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from imagepiece_jax import cli
from imagepiece_jax.config import files as config_files
from imagepiece_jax.config import overrides
from imagepiece_jax.errors import InputError, RunError, Stopped
from tests.command import call, sentence, start
from tests.refused import refused
from tests.runs import ROOT

cli.define_config()
IMAGEPIECE = "configs/deit_s_imagepiece.py"


@pytest.fixture(autouse=True)
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def parsed(*words, config=IMAGEPIECE):
    """The config that a command gets to see."""
    seen = []
    call(lambda: seen.append(cli.configs()), "--config", config, *words).ok()
    [found] = seen[0].values()
    return found


HOME = os.path.expanduser("~")
BLOCKS = "reduction.merge_blocks"
CROP = "--config.data.eval_crop=None"


@pytest.mark.parametrize(
    "words, field, value",
    [
        (["--config.batch_size=256"], "batch_size", 256),
        (["--config.batch_size", "256"], "batch_size", 256),
        (["--config.batch_size=8", "--config.batch_size=9"], "batch_size", 9),
        (["--config.reduction.keep_rate=1"], "reduction.keep_rate", 1),
        (["--config.lr=1e-3"], "lr", 1e-3),
        ([f"--config.{BLOCKS}", "-1,"], BLOCKS, (-1,)),
        (["--config.data.flip=false"], "data.flip", False),
        (["--noconfig.data.flip"], "data.flip", False),
        (["--config.model.prop_attn"], "model.prop_attn", True),
        (["--config.model.prop_attn", "--config.lr=1"], "model.prop_attn", True),
        (["--config.data.name=csv:a=b,c.csv"], "data.name", "csv:a=b,c.csv"),
        (["--config.data.dir="], "data.dir", ""),
        (["--config.data.dir=~/sets"], "data.dir", f"{HOME}/sets"),
        (["--config.data.name", "csv:~/a.csv"], "data.name", f"csv:{HOME}/a.csv"),
        (["--config.model.mlp_ratio=3"], "model.mlp_ratio", 3.0),
        (["--config.betas=(0.8, 0.9)"], "betas", (0.8, 0.9)),
        ([f"--config.{BLOCKS}=0,1"], BLOCKS, (0, 1)),
        ([f"--config.{BLOCKS}=[0, 1]"], BLOCKS, (0, 1)),
        (['--config.init.fresh=("head",)'], "init.fresh", ("head",)),
        (["--config.init.fresh=head"], "init.fresh", ("head",)),
        (["--config.init.fresh='blocks_3/mlp'"], "init.fresh", ("blocks_3/mlp",)),
        (["--config.init.weights="], "init.weights", ""),
        (["--config.model.name="], "model.name", None),
        (["--config.data.eval_crop=0.9", CROP], "data.eval_crop", None),
    ],
)
def test_override(words, field, value):
    config = parsed(*words)
    for name in field.split("."):
        config = config[name]
    assert config == value
    assert type(config) is type(value)


def test_a_typed_cost_replaces_the_amounts_of_a_config(tmp_path, monkeypatch):
    """Such as r of a run; tests/errors.txt has those that are typed with it."""
    text = "from configs import deit_s_tome\n\ndef get_config():\n"
    text += "    config = deit_s_tome.get_config()\n    config.reduction.r = 8\n"
    (tmp_path / "own.py").write_text(text + "    return config\n")
    monkeypatch.chdir(tmp_path)
    found = parsed("--config.reduction.macs=.6", config="own.py").reduction
    assert found.to_dict() == "tome:macs=0.6"
    kept = parsed("--config.reduction.macs=None", config="own.py").reduction
    assert kept.r == 8


BEFORE_JAX = """
import atexit, runpy, sys
atexit.register(lambda: print("jax" in sys.modules))
sys.argv[0] = "{0}"
runpy.{1}("{0}", run_name="__main__")
"""


@pytest.mark.parametrize("field", ["epochs=0", "data.crop=x", "distill.kind=x"])
@pytest.mark.parametrize(
    "command",
    [
        ("train.py", "run_path"),
        ("imagepiece_jax.commands.benchmark", "run_module"),
    ],
)
def test_mistakes_of_a_config_come_before_jax(command, field):
    name, run, *words = [*command, "--config=configs/quickstart.py"]
    ended = start("-c", BEFORE_JAX.format(name, run), *words, f"--config.{field}")
    assert sentence(ended).startswith(f"config.{field.partition('=')[0]} is ")
    assert ended.out == "False\n"


def test_another_method_has_its_own_fields():
    """In any order; those of the method before are gone, and its defaults hold."""
    name = "name=evit"
    typed = ["keep_rate=.6", "fuse_token", "blocks=(2,)"]
    evit = "evit:keep_rate=0.6:fuse_token=True:blocks=(2,)"
    for words in ([name, *typed], [*typed, name]):
        config = parsed(*(f"--config.reduction.{word}" for word in words))
        assert config.reduction.to_dict() == evit
    same = parsed("--config.reduction.name=imagepiece")
    assert same.to_dict() == config_files.load_config(IMAGEPIECE).to_dict()


def test_a_field_of_a_type_that_no_text_can_set():
    config = config_files.load_config(IMAGEPIECE)
    with config.unlocked():
        config.words = ["a"]
    with refused("config.words", list):
        overrides.override(config, "words", "b")


@pytest.mark.parametrize(
    "error, status, said",
    [
        (InputError(problem="lr is -1"), 2, "error: lr is -1"),
        (RunError("loss is nan"), 1, "error: loss is nan"),
        (MemoryError("5 TiB"), 1, "error: this machine has too little memory: 5 TiB"),
        # To be stopped is no error.
        (Stopped(15, 7), 143, "stopped at step 7; the same command resumes from there"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_status_and_sentence_of_an_end(error, status, said):
    def main():
        raise error

    ended = call(main)
    assert (ended.status, ended.err) == (status, f"{said}\n")
    assert call(lambda: 7).status == 7


def test_a_deleted_working_directory_is_a_sentence(tmp_path, monkeypatch):
    folder = tmp_path / "deleted"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    ended = call(os.getcwd)
    said = "error: the working directory has been deleted\n"
    assert (ended.status, ended.err) == (2, said)


def test_overrides_reach_all_configs():
    names = ["configs/deit_s.py:deit_ti", "configs/deit_s.py"]
    seen = []

    def main():
        seen.append(cli.configs())

    words = []
    for name in names:
        words += ("--config", name)
    for _ in range(2):  # what was given once is forgotten
        assert call(main, *words, "--config.lr=0.5").status == 0
        given = seen.pop()
        assert list(given) == ["deit_ti", "deit_s"]
        assert [config.model.name for config in given.values()] == list(given)
        assert [config.lr for config in given.values()] == [0.5, 0.5]


def test_a_config_file_can_take_an_argument_and_be_anywhere(tmp_path, monkeypatch):
    """Those of the package are found from anywhere."""
    path = tmp_path / "configs" / "mine.py"
    path.parent.mkdir()
    path.write_text(
        "from ml_collections import ConfigDict\n"
        "from configs import other\n"
        "def get_config(text='none'):\n"
        "    return ConfigDict({'text': text, 'number': other.NUMBER})\n"
    )
    (path.parent / "other.py").write_text("NUMBER = 5\n")
    monkeypatch.chdir(tmp_path.parent)
    assert config_files.load_config(path).text == "none"
    config = config_files.load_config(f"{path}:a:b")
    assert (config.text, config.number, config.is_locked) == ("a:b", 5, True)
    config = config_files.load_config("configs/deit_s_evit.py:deit_ti")
    assert (config.model.name, config.reduction.name) == ("deit_ti", "evit")


def test_a_config_file_of_the_users_imports_the_packages_own(tmp_path, monkeypatch):
    path = tmp_path / "mine.py"
    text = "from configs import base\ndef get_config():\n    return base.get_config()\n"
    path.write_text(text)
    others = []
    for folder in sys.path:
        if not (pathlib.Path(folder) / "configs").is_dir():
            others.append(folder)
    monkeypatch.setattr(sys, "path", list(others))
    for name in ("configs", "configs.base"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert config_files.load_config(path).is_locked
    assert sys.path == others


@pytest.mark.parametrize(
    "words, said",
    [
        (
            ["-m", "imagepiece_jax", "evaluate", "--config.eval_batch_size=4"],
            "--config.eval_batch_size is not for weights, which say their model; "
            "give --batch=4",
        ),
        (
            ["-m", "imagepiece_jax", "doctor", "--config.lr=1"],
            "--config.lr is for commands with a config; allowed: none",
        ),
    ],
)
def test_a_flag_of_another_command_is_named(words, said):
    assert sentence(start(*words, imported=True)) == said


@pytest.mark.parametrize(
    "words, said",
    [
        (["describe", "w.pth", "0.5"], "did you mean --reduction=0.5?"),
        (["export", "w.pth", "x.onnx"], "did you mean --out=x.onnx?"),
        (
            ["evaluate", "w.pth", "gone"],
            "there is no such file or folder; see --help for flags",
        ),
        (["doctor", "gone"], "see --help for flags"),
    ],
)
def test_a_word_that_is_left_over_is_answered_by_what_lacks(words, said):
    error = f"{words[-1]!r} is an unexpected argument; {said}"
    assert sentence(start("-m", "imagepiece_jax", *words, imported=True)) == error


@pytest.mark.parametrize("name", ["output", "o"])
def test_a_program_behind_output_is_the_file_to_write(name, tmp_path):
    """export has a flag --output, which chooses what a program gives."""
    typed = [f"--{name}", "none/x.onnx", "w.pth"]
    error = sentence(start("-m", "imagepiece_jax", "export", *typed, imported=True))
    assert error.startswith("--out none/x.onnx cannot be written")


OF_WEIGHTS = """
import contextlib, json, sys
from absl import flags
from imagepiece_jax import cli
from imagepiece_jax.config import command_line
from imagepiece_jax.commands import _images, _weights

_weights.weights()
if sys.argv[1] == "labeled":
    _images.labeled_images()
else:
    cli.integer("batch", None, "images a step")
cli.text("out", None, "a folder")
for line in json.loads(sys.argv[2]):
    flags.FLAGS.unparse_flags()
    for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0]):
        flag.unparse()
    rest = command_line.parse(["command", *line], sys.argv[1] == "words")
    typed = {}
    for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0]):
        if flag.present:
            typed[flag.name] = flag.value
    print(json.dumps([typed, dict(command_line._overrides), rest[1:]]))
"""


def taken(folder, kind, lines):
    """[{flag: value}, {field: value}, other words] of each command line."""
    pathlib.Path(folder, "w.pth").touch()
    pathlib.Path(folder, "photos").mkdir()
    pathlib.Path(folder, "saved").mkdir()
    pathlib.Path(folder, "saved", "config.json").touch()
    words = ["-c", OF_WEIGHTS, kind, json.dumps(lines)]
    ended = start(*words, cwd=folder, PYTHONPATH=str(ROOT)).ok()
    return [json.loads(line) for line in ended.out.splitlines()]


@pytest.mark.parametrize(
    "kind, taken_as",
    [
        (
            "labeled",
            {
                "w.pth photos --limit 1_000": [
                    {"weights": "w.pth", "data": "photos", "limit": 1000},
                    {},
                    [],
                ],
                "photos w.pth": [{"weights": "w.pth", "data": "photos"}, {}, []],
                "--model w.pth --images=photos": [
                    {"weights": "w.pth", "data": "photos"},
                    {},
                    [],
                ],
                "--model deit_s --checkpoint w.pth --img-size 160": [
                    {"weights": "w.pth", "name": "deit_s", "image_size": "160"},
                    {},
                    [],
                ],
                "--model num_heads=3 --model norm_eps=1e-5": [
                    {"model": ["num_heads=3", "norm_eps=1e-5"]},
                    {},
                    [],
                ],
                "--batch-size=8 --crop-pct 1": [{"batch": 8, "crop": 1.0}, {}, []],
                "--macs 50%": [{"reduction": "50%"}, {}, []],
                "--method tome=.5": [{"reduction": "tome=.5"}, {}, []],
            },
        ),
        ("learned", {"--batch-size=8": [{"batch": 8}, {}, []]}),
        (
            "words",
            {
                "--images photos 1.png --weights w.pth": [
                    {"weights": "w.pth"},
                    {},
                    ["photos", "1.png"],
                ],
                "w.pth photos 1.png": [{"weights": "w.pth"}, {}, ["photos", "1.png"]],
                "saved photos": [{"weights": "saved"}, {}, ["photos"]],
                "--weights saved w.pth": [{"weights": "saved"}, {}, ["w.pth"]],
                "w.pth -- -1.png --a-b=c.png --out": [
                    {"weights": "w.pth"},
                    {},
                    ["-1.png", "--a-b=c.png", "--out"],
                ],
            },
        ),
    ],
    ids=["labeled", "learned", "words"],
)
def test_what_others_call_a_flag_is_taken(tmp_path, kind, taken_as):
    found = taken(tmp_path, kind, [line.split() for line in taken_as])
    assert dict(zip(taken_as, found, strict=True)) == taken_as


KEEPS = """
from imagepiece_jax import cli

cli.define_config()

def main():
    import jax
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    print(jax.jit(lambda x: 3 * x + 1)(2.0))

cli.run(main)
"""


@pytest.mark.parametrize("words", [[], ["--keep_rate=.5"]], ids=["plain", "looked up"])
def test_programs_are_kept_and_a_broken_one_is_compiled_again(tmp_path, words):
    """Also where JAX was imported to find the field that a word names."""
    script = tmp_path / "keeps.py"
    home = tmp_path / "cache"
    script.write_text(KEEPS)
    variables = {name: os.environ[name] for name in os.environ if "JAX" not in name}
    variables |= {"PYTHONPATH": os.getcwd(), "XDG_CACHE_HOME": str(home)}
    variables["JAX_PLATFORMS"] = "cpu"
    command = [sys.executable, script, *words]
    for turn in range(2):
        ended = subprocess.run(command, env=variables, capture_output=True, text=True)
        assert (ended.returncode, ended.stdout) == (0, "7.0\n")
        (folder,) = (home / "imagepiece_jax" / "programs").iterdir()
        # Said once a machine. JAX warns of the broken ones.
        assert (f"kept in {folder} (set JAX_" in ended.stderr) == (turn == 0)
        programs = [*folder.glob("*-cache")]
        assert programs
        for file in programs:  # as a process leaves it that is killed while it writes
            file.write_bytes(file.read_bytes()[:100])


@pytest.mark.parametrize(
    "variables",
    [
        {"XDG_CACHE_HOME": "/proc/none", "HOME": "/proc/none"},
        {"XDG_CACHE_HOME": "not/absolute", "HOME": "/proc/none"},
        {"JAX_COMPILATION_CACHE_DIR": ""},
    ],
)
def test_where_nothing_can_be_kept_nothing_is_said(variables, monkeypatch, capsys):
    for name in [name for name in os.environ if "JAX" in name]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    cli.keep_programs(jax_was_there=False)
    assert capsys.readouterr() == ("", "")
    assert not os.environ.get("JAX_COMPILATION_CACHE_DIR")


TWICE = """
import warnings
from imagepiece_jax import cli

def main():
    for _ in range(2):
        with warnings.catch_warnings():  # Python forgets what it has shown
            pass
        warnings.warn("of this")

cli.run(main, compiles=False)
"""


def test_a_command_warns_once_of_one_thing():
    ended = start("-c", TWICE, PYTHONWARNINGS="").ok()
    assert ended.err == "warning: of this\n"


FULL = """
from imagepiece_jax import cli
cli.run(lambda: print("x" * 10_000), compiles=False)
"""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="of Linux")
def test_output_to_a_full_disk_is_one_sentence():
    command = [sys.executable, "-c", FULL]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True
        )
    said = "error: the output cannot be written (No space left on device)\n"
    assert (ended.returncode, ended.stderr) == (1, said)


CRASHES = """
import atexit, os, signal, sys
from imagepiece_jax import cli, errors

class Crash:  # what threads of libraries have done when the interpreter goes
    def __del__(self, kill=os.kill, pid=os.getpid(), signum=signal.SIGSEGV):
        kill(pid, signum)

crash = sys.crash = Crash()
atexit.register(print, "done at exit")

def main():
    print("\\udce9 \\xb1")  # nor can an ASCII terminal show it
    raise errors.Stopped(15, 3)

cli.run(main)
"""


def test_a_crash_in_the_end_of_python_does_not_change_the_status(tmp_path):
    script = tmp_path / "crashes.py"
    script.write_text(CRASHES)
    ended = start(script, PYTHONPATH=os.getcwd(), PYTHONIOENCODING="ascii")
    assert (ended.status, ended.out) == (143, "\\udce9 \\xb1\ndone at exit\n")
    assert ended.err.startswith("stopped at")
    assert ended.err.count("\n") == 1
