"""Mistakes in the words of tools: the word stands in what is said."""

import importlib

import pytest

from tests.command import call


@pytest.mark.parametrize(
    "tool, words, said",
    [
        ("compile_only", "--configs quickstart --mode copy", "copy"),
        ("compile_only", "", "--configs"),
        ("drill", "--only train predict", "predict"),
        ("gpu_speed", "", "times"),
        ("torch_baselines", "deit_s --against keras", "keras"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, tool, words, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    main = importlib.import_module(f"tools.{tool}").main
    ended = call(main, *words.split())
    assert ended.status == 2 and said in ended.err, ended
