"""The command: mistakes in one sentence, and experiments from end to end."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import __main__ as command
from experiments import runner
from experiments.context import TrainedRuns
from experiments.settings import TableSettings
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.config import ModelConfig
from imagepiece_jax.pretrained.load import Weights
from tests.command import call, sentence
from tests.experiments import tiny_context

MODEL = [
    *("--config", "configs/quickstart.py", "--config.model.stem=patch"),
    *(f"--config.model.{name}={value}" for name, value in tiny_context.SIZE.items()),
    *("--config.model.mlp_ratio=2", "--config.reduction.merge_blocks=(0,)"),
    "--config.reduction.prune_blocks=(2,)",
]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Flags that fit the tiny weights."""
    made = tiny_context.pretrained(tmp_path_factory.mktemp("weights"))
    few = ("--limit", 20, "--eval_batch_size", 10, "--nospeed")
    return [*MODEL, "--data", "digits", "--weights", made.path, *few]


def test_all_are_those_that_the_flags_allow():
    whole = runner.select(["all"], TableSettings())
    assert [*whole, *runner.APART] == list(runner.EXPERIMENTS)
    untimed = runner.select(["all"], TableSettings(speed=False))
    assert set(whole) - set(untimed) == {"throughput"}
    trained = runner.select(["all"], TableSettings(small=True))
    assert set(whole) - set(trained) == set(runner.ONE_CHECKPOINT) - set(runner.APART)


@pytest.mark.parametrize(
    "given, message",
    [
        ([], "NAME is missing; allowed: one of table1, table2"),
        (["magic"], "NAME is magic; allowed: one of"),
        (["salency"], "NAME is salency; did you mean saliency?"),
        (["table1", "table2"], "NAME is table1 table2; allowed: one"),
        (["table1"], "--data is missing"),
        (["table1", "--data", "digits"], "--weights is missing"),
        (["table1", "--data", "digits", "--small"], "--weights is missing"),
        (
            ["table1", "--data=digits", "--seeds=-1"],
            "--seeds is '-1'; allowed: one or more whole numbers from 0",
        ),
        (["throughput", "--batch_sizes=0"], "--batch_sizes is '0'"),
        (
            ["throughput", "--batch_sizes="],
            "--batch_sizes is empty; allowed:",
        ),
        (["throughput", "--modes="], "--modes is empty; allowed: one or more"),
        (
            ["table1", "--data=digits", "--seeds="],
            "--seeds is empty; allowed:",
        ),
        (
            ["throughput", "--modes=fly"],
            "--modes is 'fly'; allowed: one or more",
        ),
        (["table1", "--data=digits", "--runs=none"], "--runs none holds no run"),
        (
            ["scratch", "--data=digits", "--config=configs/none.py"],
            "config file configs/none.py does not exist",
        ),
        (
            ["scratch", "--data=digits", "--config=configs/quickstart.py"],
            "scratch trains from random weights, by flags of its own",
        ),
        (["scratch", "--data=digits", "--mean=.5"], "--mean is given alone"),
        (
            ["scratch", "--data=digits", "--config.image_size=8"],
            "scratch trains from random weights, by flags of its own",
        ),
        (
            ["throughput", "--config.image_size=8"],
            "--config is missing: allowed without it is --config.FIELD=VALUE of",
        ),
        (["saliency", "--data=digits"], "--weights is missing"),
        (["saliency", "--data=digits", "--small", "--weights=w.npz"], "no such form"),
        (["saliency", "--shares=2"], "--shares is '2.0'; allowed: one or more"),
    ],
)
def test_mistakes_in_flags(tmp_path, given, message):
    assert message in sentence(call(command.main, *given, "--out", tmp_path / "out"))


@pytest.mark.parametrize(
    "given, message",
    [
        (["table1", "--small", "--runs=x"], "--runs and --small are both given"),
        (["table3", "--small"], "--small: table3 has no such form; allowed: table1"),
    ],
)
def test_contradictions_of_flags(tmp_path, words, given, message):
    ended = call(command.main, *given, *words, "--out", tmp_path / "out")
    assert message in sentence(ended)


@pytest.mark.slow
def test_all_names_what_it_leaves_out_and_measures_nothing_twice(tmp_path, words):
    """At four blocks EViT's default blocks do not exist; overlap has no such row."""
    names = ("overlap", "evit-table")
    with pytest.MonkeyPatch.context() as patch:
        kept = {name: runner.EXPERIMENTS[name] for name in names}
        patch.setattr(runner, "EXPERIMENTS", kept)
        first = call(command.main, "all", *words, "--out", tmp_path)
        before = (tmp_path / "points.jsonl").read_text()
        second = call(command.main, *words, "all", "--out", tmp_path)
    assert first.status == second.status == 0, (first, second)
    assert "evit-table is left out: config.reduction has a step at block" in first.out
    assert (tmp_path / "points.jsonl").read_text() == before
    page = (tmp_path / "overlap.md").read_text()
    assert page in first.out and page in second.out
    assert "0.0 [0.0, 0.0] | 0.0 [0.0, 0.0]" in page  # ImagePiece's
    assert page in (tmp_path / "results.md").read_text()
    kinds = [json.loads(line)["experiment"] for line in before.splitlines()]
    assert kinds.count("overlap") == 2
    again = call(command.main, "overlap", *words, "--out", tmp_path, "--again")
    lines = (tmp_path / "points.jsonl").read_text().splitlines()
    assert again.status == 0 and len(lines) == len(kinds) + 2
    old, new = (json.loads(lines[i])["result"] for i in (0, -2))
    assert np.allclose(old["src 30"], new["src 30"])


def test_one_experiment_alone_ends_with_its_mistake(tmp_path, words):
    ended = call(command.main, "evit-table", *words, "--out", tmp_path)
    assert "config.reduction has a step at block" in sentence(ended)


def test_runs_of_different_data_sets_are_a_mistake():
    made = [
        Weights(None, ModelConfig(num_classes=classes, image_size=16), {})
        for classes in (10, 11)
    ]
    settings, runs = SimpleNamespace(runs="runs"), TrainedRuns(tuple(made))
    with pytest.raises(InputError, match="models of different classes or image sizes"):
        runner._images(settings, runs, ["table1"])
