"""The command: mistakes in one sentence, and experiments from end to end."""

import json

import numpy as np
import pytest

from experiments import paper
from imagepiece_jax.evaluate.cache import FILE
from tests.command import call, sentence
from tests.experiments import tiny_paper
from tests.experiments.tiny_paper import NAMED


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Flags that fit the tiny weights."""
    weights = tiny_paper.pretrained(tmp_path_factory.mktemp("weights"))
    few = ("--limit", 20, "--eval_batch_size", 10, "--nospeed")
    return [*NAMED, "--data", "digits", "--weights", weights.source.path, *few]


DIGITS = "--data=digits"


@pytest.mark.parametrize(
    "words, start",
    [
        ([], "NAME is ''; allowed: table1, table2"),
        (["magic"], "NAME is 'magic'; allowed: table1"),
        (["table1"], "--data is missing"),
        (["table1", DIGITS], "--weights is missing"),
        (["table1", DIGITS, "--seeds=-1"], "--seeds is '-1'"),
        (["table1", "--runs=x", DIGITS, "--config.mixup=0"], "--config is missing"),
        (["table3", "--small"], "--small has no form of table3"),
        (["table1", "--small", "--runs=x"], "--runs is given with --small"),
    ],
)
def test_mistakes_in_flags(tmp_path, words, start):
    ended = call(paper.main, *words, "--out", tmp_path / "out")
    assert sentence(ended).startswith(start)


@pytest.mark.slow
def test_all_names_what_it_leaves_out_and_measures_nothing_twice(tmp_path, words):
    """At four blocks EViT's default blocks do not exist; overlap has no such row."""
    names = ("overlap", "combos")
    results = tmp_path / FILE
    with pytest.MonkeyPatch.context() as patch:
        some = {name: paper.TABLES[name] for name in names}
        patch.setattr(paper, "TABLES", some)
        first = call(paper.main, "all", *words, "--out", tmp_path)
        before = results.read_text()
        second = call(paper.main, *words, "all", "--out", tmp_path)
    assert first.status == second.status == 0, (first, second)
    assert "left out: combos\n" in first.out
    assert results.read_text() == before
    page = (tmp_path / "overlap.md").read_text()
    assert page in first.out
    assert page in second.out
    assert "0.0 [0.0, 0.0] | 0.0 [0.0, 0.0]" in page  # ImagePiece's
    by_name = {}
    for text in before.splitlines():
        setting = json.loads(text)["setting"]
        if setting["kind"] == "overlap":
            by_name[setting["reduction"].partition(":")[0]] = text
    assert {*by_name} == {"imagepiece", "tome"}
    results.write_text(before.replace(by_name["tome"] + "\n", ""))
    again = call(paper.main, "overlap", *words, "--out", tmp_path)
    assert again.status == 0
    old = json.loads(by_name["tome"])
    new = json.loads(results.read_text().splitlines()[-1])
    assert old["setting"] == new["setting"]
    assert np.allclose(old["result"]["src 30"], new["result"]["src 30"])


def test_one_experiment_alone_ends_with_its_mistake(tmp_path, words):
    ended = call(paper.main, "combos", *words, "--out", tmp_path)
    assert "allowed: 0 to 3, the blocks of the model" in sentence(ended)
