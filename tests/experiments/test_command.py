"""The command: mistakes in one sentence, and experiments from end to end."""

import importlib
import json
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import paper as command
from experiments import runner
from experiments.context import TrainedRuns
from imagepiece_jax.errors import InputError
from tests.command import call, sentence
from tests.experiments import tiny_context
from tests.experiments.tiny_context import MODEL


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Flags that fit the tiny weights."""
    weights = tiny_context.pretrained(tmp_path_factory.mktemp("weights"))
    few = ("--limit", 20, "--eval_batch_size", 10, "--nospeed")
    return [*MODEL, "--data", "digits", "--weights", weights.source.path, *few]


def test_all_are_those_that_the_flags_allow():
    every = runner.selected(["all"], small=False)
    assert every == [*runner.EXPERIMENTS]
    trained = runner.selected(["all"], small=True)
    assert set(every) - set(trained) == {"table3"}


def test_every_experiment_is_a_function():
    for each in runner.EXPERIMENTS.values():
        module, _, name = each.partition(":")
        assert callable(getattr(importlib.import_module(f"experiments.{module}"), name))


DIGITS = "--data=digits"


@pytest.mark.parametrize(
    "words, start",
    [
        ([], "NAME is ''; allowed: table1, table2"),
        (["magic"], "NAME is 'magic'; allowed: table1"),
        (["table1", "table2"], "NAME is 'table1 table2'; allowed: table1"),
        (["table1"], "--data is missing"),
        (["table1", DIGITS], "--weights is missing"),
        (["table1", DIGITS, "--small"], "--weights is missing"),
        (["table1", DIGITS, "--seeds=-1"], "--seeds is '-1'"),
        (["table1", DIGITS, "--seeds="], "--seeds is ''"),
        (["table1", DIGITS, "--runs=none"], "--runs"),
        (["table1", DIGITS, "--config=configs/none.py"], "config"),
        (["table1", DIGITS, "--mean=.5"], "--mean is given without"),
        (["table1", DIGITS, "--eval_batch_size=0"], "--eval_batch_size is 0"),
        (["table1", "--runs=x", DIGITS, "--config.mixup=0"], "--config is missing"),
        (["table3", "--small"], "--small has no form of table3"),
        (["table1", "--small", "--runs=x"], "--runs is given with --small"),
    ],
)
def test_mistakes_in_flags(tmp_path, words, start):
    ended = call(command.main, *words, "--out", tmp_path / "out")
    assert sentence(ended).startswith(start)


@pytest.mark.slow
def test_all_names_what_it_leaves_out_and_measures_nothing_twice(tmp_path, words):
    """At four blocks EViT's default blocks do not exist; overlap has no such row."""
    names = ("overlap", "combos")
    with pytest.MonkeyPatch.context() as patch:
        some = {name: runner.EXPERIMENTS[name] for name in names}
        patch.setattr(runner, "EXPERIMENTS", some)
        first = call(command.main, "all", *words, "--out", tmp_path)
        before = (tmp_path / "points.jsonl").read_text()
        second = call(command.main, *words, "all", "--out", tmp_path)
    assert first.status == second.status == 0, (first, second)
    assert "left out: combos\n" in first.out
    assert (tmp_path / "points.jsonl").read_text() == before
    page = (tmp_path / "overlap.md").read_text()
    assert page in first.out and page in second.out
    assert "0.0 [0.0, 0.0] | 0.0 [0.0, 0.0]" in page  # ImagePiece's
    kinds = [json.loads(line)["experiment"] for line in before.splitlines()]
    assert kinds.count("overlap") == 2
    again = call(command.main, "overlap", *words, "--out", tmp_path, "--again")
    lines = (tmp_path / "points.jsonl").read_text().splitlines()
    assert again.status == 0 and len(lines) == len(kinds) + 2
    old = json.loads(lines[0])["result"]
    new = json.loads(lines[-2])["result"]
    assert np.allclose(old["src 30"], new["src 30"])


def test_one_experiment_alone_ends_with_its_mistake(tmp_path, words):
    ended = call(command.main, "combos", *words, "--out", tmp_path)
    assert sentence(ended).endswith("blocks 0 to 3 of the model")


def test_runs_of_different_data_sets_are_a_mistake():
    models = [
        SimpleNamespace(model=SimpleNamespace(num_classes=classes), image_size=16)
        for classes in (10, 11)
    ]
    settings = SimpleNamespace(runs="runs")
    runs = TrainedRuns(tuple(models))
    with pytest.raises(InputError) as error:
        runner._images(settings, runs)
    assert (error.value.field, error.value.value) == ("--runs", "runs")
