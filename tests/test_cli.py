"""Flags and overrides: what may be typed, and what is said of what may not."""

import os

import pytest

from imagepiece_jax import cli, config_files
from imagepiece_jax.errors import InputError, RunError, Stopped
from tests.command import call, sentence, start
from tests.runs import ROOT

CONFIG = cli.define_config()
IMAGEPIECE = "configs/deit_s_imagepiece.py"


@pytest.fixture(autouse=True)
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def parsed(*words, config=IMAGEPIECE):
    """The config that a command gets to see."""
    seen = []

    def main():
        seen.append(cli.required(CONFIG))

    ended = call(main, "--config", config, *words)
    assert ended.status == 0, ended
    return seen[0]


def refused(*words):
    return sentence(call(lambda: pytest.fail("main was called"), *words))


@pytest.mark.parametrize(
    "words, field, value",
    [
        (["--config.batch_size=256"], "batch_size", 256),
        (["--config.batch_size", "256"], "batch_size", 256),
        (["-config.batch_size=256"], "batch_size", 256),
        (["--config.batch_size=8", "--config.batch_size=9"], "batch_size", 9),
        (["--config.reduction.keep_rate=0.6"], "reduction.keep_rate", 0.6),
        (["--config.reduction.keep_rate=1"], "reduction.keep_rate", 1.0),
        (["--config.lr=1e-3"], "lr", 1e-3),
        (["--config.lr", "-1"], "lr", -1.0),
        (["--config.data.flip=false"], "data.flip", False),
        (["--config.data.flip=0"], "data.flip", False),
        (["--noconfig.data.flip"], "data.flip", False),
        (["--config.model.prop_attn"], "model.prop_attn", True),
        (["--config.model.prop_attn", "--config.lr=1"], "model.prop_attn", True),
        (["--config.model.prop_attn=True"], "model.prop_attn", True),
        (["--config.data.name=csv:a=b,c.csv"], "data.name", "csv:a=b,c.csv"),
        (["--config.data.dir="], "data.dir", ""),
        (["--config.model.depth=6"], "model.depth", 6),
        (["--config.model.mlp_ratio=3"], "model.mlp_ratio", 3.0),
        (["--config.betas=(0.8, 0.9)"], "betas", (0.8, 0.9)),
    ],
)
def test_override(words, field, value):
    config = parsed(*words)
    for name in field.split("."):
        config = config[name]
    assert config == value and type(config) is type(value)


@pytest.mark.parametrize("text", ["(0,1,3)", "0,1,3", "[0, 1, 3]"])
def test_tuple_of_a_field_that_the_file_leaves_empty(text):
    config = parsed(f"--config.reduction.merge_blocks={text}")
    assert config.reduction.merge_blocks == (0, 1, 3)


@pytest.mark.parametrize(
    "text, value",
    [
        ('("head",)', ("head",)),
        ("head", ("head",)),
        ("head, norm", ("head", "norm")),
        ("'blocks_3/mlp'", ("blocks_3/mlp",)),
        ("()", ()),
    ],
)
def test_tuple_of_names(text, value):
    assert parsed(f"--config.init.fresh={text}").init.fresh == value


def test_the_rest_is_as_in_the_file():
    changed = parsed("--config.lr=0.5").to_dict()
    assert changed == config_files.load(IMAGEPIECE).to_dict() | {"lr": 0.5}


@pytest.mark.parametrize(
    "word, told",
    [
        (
            "--config.bach_size=3",
            "config.bach_size is not a field; did you mean config.batch_size?",
        ),
        (
            "--config.reduction.keeprate=1",
            "config.reduction.keeprate is not a field; did you mean "
            "config.reduction.keep_rate?",
        ),
        (
            "--config.keep_rate=1",
            "config.keep_rate is not a field; did you mean config.reduction.keep_rate?",
        ),
        (
            "--config.reducton.parity=1",
            "config.reducton.parity is not a field; did you mean "
            "config.reduction.parity?",
        ),
        (
            "--config.name=x",
            "config.name is not a field; did you mean config.data.name or "
            "config.model.name or config.reduction.name?",
        ),
        (
            "--config.init.zebra=1",
            "config.init.zebra is not a field; config.init has evaluate, fresh, "
            "weights",
        ),
        (
            "--config.lr.x=1",
            "config.lr.x is not a field; config has augment, batch_size, betas,",
        ),
        (
            "--config.=1",
            "config. is not a field; config has augment, batch_size, betas,",
        ),
        (
            "--config.init=1",
            "config.init is a group of fields; set one of them: evaluate, fresh, "
            "weights",
        ),
        (
            "--config.batch_size=abc",
            "config.batch_size is 'abc'; allowed are whole numbers",
        ),
        (
            "--config.batch_size=2.5",
            "config.batch_size is '2.5'; allowed are whole numbers",
        ),
        ("--config.batch_size=", "config.batch_size is ''; allowed are whole numbers"),
        (
            "--config.batch_size",
            "config.batch_size has no value; allowed are whole numbers",
        ),
        ("--config.lr=nan", "config.lr is 'nan'; allowed are finite numbers"),
        ("--config.lr=inf", "config.lr is 'inf'; allowed are finite numbers"),
        ("--config.lr=fast", "config.lr is 'fast'; allowed are finite numbers"),
        (
            "--config.data.flip=maybe",
            "config.data.flip is 'maybe'; allowed are true and false",
        ),
        ("--noconfig.lr", "config.lr is 'false'; allowed are finite numbers"),
        (
            "--config.betas=(0.9,",
            "config.betas is '(0.9,'; allowed are tuples, such as (0, 1) or head,norm",
        ),
        (
            "--confg.lr=1",
            "--confg.lr is not a flag; did you mean --config.lr?",
        ),
        ("--confg=x", "--confg is not a flag; did you mean --config?"),
        ("x.py", "x.py stands alone; did you mean --config x.py?"),
        ("x", "'x' stands alone; allowed are flags, see --help"),
    ],
)
def test_mistake_is_told_in_one_sentence(word, told):
    said = refused("--config", IMAGEPIECE, word)
    assert said == told or (told.endswith(",") and said.startswith(told))


def test_config_is_missing():
    told = "--config is missing: a config file"  # commands go on differently
    assert refused("--config.lr=1").startswith(told)
    assert sentence(call(lambda: cli.required(CONFIG))).startswith(told)


def test_a_field_of_a_type_that_no_text_can_set():
    config = config_files.load(IMAGEPIECE)
    with config.unlocked():
        config.table = {1: 2}
        config.words = ["a"]
    with pytest.raises(InputError, match="config.words is of type list; .* bool, int,"):
        config_files.override(config, "words", "b")


@pytest.mark.parametrize(
    "error, status, told",
    [
        (InputError("lr is -1"), 2, "error: lr is -1\n"),
        (RunError("loss is nan"), 1, "error: loss is nan\n"),
        (
            Stopped(15, 7),
            143,
            "error: stopped at step 7; the same command resumes from there\n",
        ),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (MemoryError("5 TiB"), 1, "error: this machine has too little memory: 5 TiB\n"),
    ],
)
def test_how_a_command_ends(error, status, told):
    def main():
        raise error

    ended = call(main)
    assert (ended.status, ended.err) == (status, told)


def test_status_of_main_and_path_of_the_config():
    assert call(lambda: 7).status == 7
    paths = []
    ended = call(lambda: paths.append(cli.config_path()), "--config", IMAGEPIECE)
    assert (ended.status, paths) == (0, [IMAGEPIECE])


def test_overrides_reach_all_configs_and_the_last_is_the_one():
    names = [f"configs/{name}.py" for name in ("deit_ti", "deit_s")]
    seen = []

    def main():
        seen.append((cli.required_configs(), cli.required(CONFIG), cli.config_path()))

    words = [word for name in names for word in ("--config", name)]
    for _ in range(2):  # what was given once is forgotten
        assert call(main, *words, "--config.lr=0.5").status == 0
        given, last, path = seen.pop()
        assert [name for name, _ in given] == names
        assert [config.model.name for _, config in given] == ["deit_ti", "deit_s"]
        assert [config.lr for _, config in given] == [0.5, 0.5]
        assert last is given[1][1] and path == names[1]


def test_of_several_configs_a_mistake_names_the_file():
    said = refused(
        *("--config", IMAGEPIECE, "--config", "configs/deit_s.py"),
        "--config.reduction.keep_rate=0.5",
    )
    told = "configs/deit_s.py: config.reduction.keep_rate is not a field; "
    assert said.startswith(told)


def config_file(folder, text):
    """A file beside copies of nothing: FOLDER/configs/mine.py, and its path."""
    path = folder / "configs" / "mine.py"
    path.parent.mkdir()
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "text, told",
    [
        ("x = 1\ndef get_config(:\n", "{path}, line 2: invalid syntax"),
        ("\nimport no_such_module\n", "{path}, line 2: ModuleNotFoundError: No module"),
        ("x = 1\n", "{path} has no function get_config()"),
        ("def get_config():\n    return {}\n", "{path} returns dict"),
        (
            "def get_config():\n    return 1 / 0\n",
            "{path}, line 2: ZeroDivisionError: d",
        ),
        ("def get_config(x):\n    return x\n", "{path}: TypeError: get_config() miss"),
        (
            "def get_config():\n    raise KeyError\n",
            "{path}, line 2: KeyError: no reas",
        ),
    ],
)
def test_config_file_that_does_not_run(tmp_path, text, told):
    path = config_file(tmp_path, text)
    assert f"config file {told.format(path=path)}" in refused("--config", path)


BASE = "from configs import base\ndef get_config():\n    config = base.get_config()\n"


@pytest.mark.parametrize(
    "line, told",
    [
        (
            "config.bach_size = 3",
            'line 4: AttributeError: Key "bach_size" does not exist and cannot be '
            'added since the config is locked; Did you mean "batch_size" instead of '
            '"bach_size"?',
        ),
        ("config.batch_size = 'x'", "line 4: TypeError: Could not override field 'ba"),
    ],
)
def test_config_file_with_a_wrong_field(tmp_path, line, told):
    path = config_file(tmp_path, f"{BASE}    {line}\n    return config\n")
    assert refused("--config", path).startswith(f"config file {path}, {told}")


@pytest.mark.parametrize(
    "path, told",
    [
        (
            "configs/deit_xs.py",
            "configs/deit_xs.py does not exist; did you mean configs/deit_s.py?",
        ),
        ("deit_ti", "deit_ti does not exist; did you mean configs/deit_ti.py?"),
        ("no/base.py", "no/base.py does not exist; did you mean configs/base.py?"),
        ("configs/a.py", "configs/a.py does not exist; configs has base, deit_b, "),
        ("configs", "configs is a folder; configs has base, deit_b, "),
        ("README", "README does not exist; configs has base, "),
        ("Makefile", "Makefile does not end in .py; configs has base, "),
    ],
)
def test_no_such_config_file(path, told):
    assert refused("--config", path).startswith(f"config file {told}")


def test_a_config_file_can_take_a_text_and_be_anywhere(tmp_path, monkeypatch):
    text = (
        "from ml_collections import ConfigDict\n"
        "from configs import other\n"
        "def get_config(text='none'):\n"
        "    return ConfigDict({'text': text, 'number': other.NUMBER})\n"
    )
    path = config_file(tmp_path, text)
    (path.parent / "other.py").write_text("NUMBER = 5\n")
    monkeypatch.chdir(tmp_path.parent)
    assert config_files.load(path).text == "none"
    config = config_files.load(f"{path}:a:b")
    assert (config.text, config.number, config.is_locked) == ("a:b", 5, True)


@pytest.mark.parametrize(
    "words, told",
    [
        (
            ["--batch_size=3"],
            "--batch_size is not a flag; allowed are --config, --workdir, --dry_run, "
            "--coordinator, --num_processes, --process_id and, for a field of the "
            "config, --config.FIELD=VALUE",
        ),
        (["--wrkdir=3"], "--wrkdir is not a flag; did you mean --workdir?"),
        (
            [],
            "--config is missing: a config file, such as configs/quickstart.py; --con",
        ),
        (["--config"], "Missing value for flag --config"),
    ],
)
def test_train_in_a_process_of_its_own(words, told):
    assert sentence(start("train.py", *words)).startswith(told)


def test_output_that_the_terminal_cannot_show_does_not_end_a_command():
    code = "from imagepiece_jax import cli; cli.run(lambda: print('\\udce9 \\xb1'))"
    ended = start("-c", code, PYTHONIOENCODING="ascii", PYTHONPATH=str(ROOT))
    assert ended == (0, "\\udce9 \\xb1\n", "")


def test_help_is_short_and_no_error():
    ended = start("train.py", "--help")
    assert (ended.status, ended.err) == (0, "")
    assert "--config: a config file, such as configs/quickstart.py; --con" in ended.out
    assert "--workdir: folder of the run" in ended.out
    assert ended.out.count("\n") < 30


CRASHES = """
import atexit, os, signal, sys
from imagepiece_jax import cli, errors

class Crash:  # what threads of libraries have done when the interpreter goes
    def __del__(self, kill=os.kill, pid=os.getpid(), signum=signal.SIGSEGV):
        kill(pid, signum)

crash = sys.crash = Crash()
atexit.register(print, "done at exit")

def main():
    raise {error}

cli.run(main)
"""


@pytest.mark.parametrize(
    "error, status",
    [
        ("errors.InputError('7 of 600 images cannot be read')", 2),
        ("errors.RunError('no')", 1),
        ("errors.Stopped(15, 3)", 143),
    ],
)
def test_a_crash_in_the_end_of_python_does_not_change_the_status(
    tmp_path, error, status
):
    script = tmp_path / "crashes.py"
    script.write_text(CRASHES.format(error=error))
    ended = start(script, PYTHONPATH=os.getcwd())
    assert ended.status == status and ended.out == "done at exit\n"
    assert ended.err.startswith("error: ") and ended.err.count("\n") == 1
