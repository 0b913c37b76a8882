"""Mistakes in the words of tools: the word stands in what is said."""

import importlib

import pytest

from tests.command import call

PREPARE = "prepare_imagenet"
FLAGS = "--source=y --partial --dir=x"


@pytest.mark.parametrize(
    "tool, words, said",
    [
        ("compile_only", "--configs quickstart --mode copy", "copy"),
        ("compile_only", "", "--configs"),
        ("drill", "--only train predict", "predict"),
        ("gpu_speed", "", "times"),
        ("input_speed", "", "--data"),
        (PREPARE, "--dir=x", "--source"),
        (PREPARE, "--source=x", "--dir"),
        (PREPARE, "--source=. --dir=x", "has neither"),
        (PREPARE, f"{FLAGS} --short-side=63", "63"),
        ("torch_baselines", "deit_s --against keras", "keras"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, tool, words, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    main = importlib.import_module(f"tools.{tool}").main
    ended = call(main, *words.split())
    assert ended.status == 2 and said in ended.err, ended
