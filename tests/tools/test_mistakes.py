"""Mistakes in the flags of tools: the field and the value stand in the sentence."""

import importlib

import pytest

from tests.benchmark.small import TINY
from tests.command import call, sentence, start

PREPARE = "prepare_imagenet"
FLAGS = ("--source=y", "--partial", "--dir=x")


@pytest.mark.parametrize(
    "tool, words, beginning",
    [
        ("compile_only", [*TINY, "--mode=copy"], "--mode is 'copy'"),
        ("compile_only", [*TINY, "--batch_size=0"], "--batch_size is '0'"),
        ("drill", ["--only=train,predict"], "--only is 'predict'"),
        ("input_speed", [], "--data is missing"),
        (PREPARE, ["--dir=x"], "--source is missing"),
        (PREPARE, ["--source=x"], "--dir is missing"),
        (PREPARE, ["--source=.", "--dir=x"], "--source . has neither"),
        (PREPARE, [*FLAGS, "--short_side=63"], "--short_side is 63"),
        (PREPARE, [*FLAGS, "--processes=-1"], "--processes is -1"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, tool, words, beginning):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    main = importlib.import_module(f"tools.{tool}").main
    assert sentence(call(main, *words)).startswith(beginning)


def test_a_tool_has_the_flags_of_the_command_that_it_runs():
    """In a process of its own: another module would own them here."""
    words = [*TINY, "--mode=train", "--config.augment.layers=0", "--against=keras"]
    ended = start("-m", "tools.torch_baselines", *words, imported=True)
    assert sentence(ended) == "--against is 'keras'; allowed: timm, tome"
