"""train.py: what it reads, and what it says of a mistake in a command line."""

import pytest

from tests.command import start

QUICKSTART = "--config=configs/quickstart.py"


@pytest.mark.parametrize(
    "words, said",
    [
        ([QUICKSTART, "--config.model.arch.gelo=tanh"], "config.model.arch.gelu?"),
        ([QUICKSTART, "--config.reduction.r=8"], "did you mean config.reduction?"),
        ([QUICKSTART, "--config.lr=fast"], "config.lr is 'fast'; it must be of type"),
        ([QUICKSTART, "--noconfig.data.flap"], "config.data.flip?"),
        ([QUICKSTART, "--config.lr=-1"], "config.lr is -1.0"),
        ([QUICKSTART, "--config.data.name=nowhere"], "config.data: name is 'nowhere'"),
        (
            ["--config=configs/quick.py"],
            "No such file or directory: 'configs/quick.py'",
        ),
        (["--config.lr=1", QUICKSTART], "config.lr"),
        ([QUICKSTART, "x"], "'x' belongs to no flag"),
        ([], "--config is missing"),
    ],
)
def test_a_mistake_is_one_sentence(words, said):
    ended = start("train.py", *words, imported=True)
    assert (ended.status, ended.out) == (2, "")
    assert ended.lines[0].startswith("error: ") and len(ended.lines) == 1
    assert said in ended.err


def test_help_lists_the_flags():
    ended = start("train.py", "--help")
    assert ended.status == 0
    assert "--workdir: folder of the run" in ended.out


def test_help_and_a_mistyped_flag_import_no_jax():
    for word in ("--help", f"{QUICKSTART} --config.larning=1"):
        words = ["-X", "importtime", "train.py", *word.split()]
        imported = start(*words).err
        assert "ml_collections" in imported
        assert "| jax\n" not in imported.replace(" ", "").replace("|", "| ")
