"""Half of the images choose, the other half report; budgets hold; configs load."""

import ast
import dataclasses
import pathlib

import numpy as np
import pytest

from configs import base
from experiments import search
from experiments.context import Options
from imagepiece_jax import cli
from imagepiece_jax.errors import InputError
from imagepiece_jax.reduction import settings
from imagepiece_jax.training import from_config
from tests.experiments import tiny_context


def test_halves_share_no_image_and_leave_none_out():
    choosing, reporting = search.halves(101)
    assert len(choosing) == 50 and len(reporting) == 51
    assert sorted([*choosing, *reporting]) == list(range(101))
    assert search.halves(101)[0].tolist() == choosing.tolist()
    # The first few are from everywhere, as a set may be sorted by class.
    assert max(search.halves(1000)[0][:20]) > 800
    with pytest.raises(InputError, match="16 images or more; found 15"):
        search.halves(15)


def test_halving_spends_more_images_on_fewer_candidates():
    """27 candidates whose score is their number: 27 on an eighth, 9 on half, 3 left."""
    calls = []

    def score(candidate, places):
        calls.append((candidate, len(places)))
        return candidate

    left = search.halving(list(range(27)), np.arange(80), score)
    assert left == [26, 25, 24]
    assert [sum(size == n for _, size in calls) for n in (10, 40, 80)] == [27, 9, 0]
    assert {c for c, size in calls if size == 40} == set(range(18, 27))


def slow_frontier(points):
    kept = []
    for i, (cost, accuracy) in enumerate(points):
        beaten = False
        for j, (c, a) in enumerate(points):
            if j != i and c <= cost and a >= accuracy and (c, a) != (cost, accuracy):
                beaten = True
        kept.append(not beaten)
    return kept


def test_frontier_is_that_of_a_slow_loop():
    rng = np.random.default_rng(0)
    points = [tuple(p) for p in rng.integers(0, 6, (40, 2)).tolist()]
    found = search.frontier(points)
    assert found == slow_frontier(points) and 0 < sum(found) < 40
    assert search.frontier([(1, 5), (2, 6), (2, 5), (3, 6)]) == [
        True,
        True,
        False,
        False,
    ]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    return tiny_context.pretrained(tmp_path_factory.mktemp("weights"))


def test_candidates_use_their_budget_and_no_more(pretrained):
    limit = 0.6 * pretrained.gmacs(settings.DENSE)
    found = search.fitted(pretrained, limit)
    costs = [pretrained.gmacs(candidate.reduction) for candidate in found]
    assert all(0.9 * limit <= cost <= limit for cost in costs)
    assert len(found) > 20 and any(candidate.known for candidate in found)
    kept = [str(settings.completed(c.reduction)) for c in found]
    assert len(set(kept)) == len(kept)
    few = search.fitted(pretrained, limit, 3)
    assert sum(not candidate.known for candidate in few) == 3


def test_windows_of_tome_merge_in_their_blocks_alone():
    rates = search.at_all_rates({"name": "tome", "blocks": (1, 3)}, 4)
    assert rates[4] == {"name": "tome", "r_list": (0, 5, 5)}


@pytest.fixture
def few_shapes(monkeypatch):
    """A published form that is good where it is chosen, and one that is not."""
    shapes = ({"name": "tome"}, {"name": "random", "blocks": (1, 2)})
    monkeypatch.setattr(search, "PUBLISHED", shapes)
    others = [{"name": "evit", "blocks": (1, 2)}]
    monkeypatch.setattr(search, "other_shapes", lambda depth: others)


class FakeResult(dict):
    right = None


def fake_context(folder, pretrained, metric="gmacs", budget=0.6, ratio=2.5):
    """A Context whose results are made up: on the choosing half evit is always right,
    on the reporting half it never is; the others the other way round."""
    context = tiny_context.context(
        folder,
        pretrained,
        options=Options(metric=metric, candidates=9, budget=(budget,)),
        config=base.get_config(),
    )
    choosing = set(search.halves(24)[0].tolist())

    def evaluate(pretrained, reduction, images=None):
        indices = context.images.source.indices
        places = np.flatnonzero(np.isin(indices, indices[images.source.indices]))
        chose = np.isin(places, list(choosing))
        assert chose.all() or not chose.any()  # never both halves at once
        best = reduction["name"] == "evit"
        right = float(best == chose.all())
        result = FakeResult(acc1=100 * right, probability=right, tokens=9)
        result["gmacs"] = pretrained.gmacs(reduction)
        result.right = np.full(len(images), bool(right))
        result.accuracy = (100 * right,) * 3
        return result

    object.__setattr__(context, "evaluate", evaluate)
    object.__setattr__(context, "speed", lambda *_: {"ratio": ratio})
    return context


def test_what_chose_is_never_reported(tmp_path, pretrained, few_shapes, monkeypatch):
    """The winner is best on the choosing half; its page shows that it is worst."""
    monkeypatch.setattr(
        "imagepiece_jax.evaluate.statistics.format_estimate", lambda e: e[0]
    )
    context = fake_context(tmp_path, pretrained)
    search.search(context)
    context.cache.close()
    page = (tmp_path / "search_gmacs.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ")][2:]
    assert rows[0].startswith("| evit ") and "| 0.0 |" in rows[0].replace("| yes", "")
    assert "| 100.0 | yes |" in rows[0]  # the choosing half's
    assert len(rows) == 3 and all("| 100.0 |" in row for row in rows[1:])
    assert "Winner: evit" in page and "-100.0 [" in page
    assert "12 of 24 images of digits" in page


def test_finalists_that_are_too_slow_take_lower_rates(tmp_path, pretrained, few_shapes):
    context = fake_context(tmp_path, pretrained, "ms")
    limit = 0.6 * pretrained.gmacs(settings.DENSE)
    finalists = search.fitted(pretrained, limit)
    calls = []

    def speed(pretrained, reduction):  # by MACs, and a fifth slower
        calls.append(reduction["name"])
        cost = pretrained.gmacs(reduction) / pretrained.gmacs(settings.DENSE)
        return {"ratio": 0.8 / cost}

    object.__setattr__(context, "speed", speed)
    found = search._within_time(context, finalists, 0.6)
    dense = pretrained.gmacs(settings.DENSE)
    assert len(found) == len(finalists) and len(calls) > len(finalists)
    assert all(pretrained.gmacs(c.reduction) <= 0.48 * dense for c in found)
    object.__setattr__(context, "speed", lambda *_: {"ratio": 0.1})
    with pytest.raises(InputError, match="no finalist is that fast"):
        search._within_time(context, finalists, 0.6)
    context.cache.close()


def test_a_budget_that_nothing_fits_is_a_mistake(tmp_path, pretrained):
    context = fake_context(tmp_path, pretrained, budget=0.01)
    with pytest.raises(InputError, match="--budget 0.01: no published reduction fits"):
        search.search(context)
    context.cache.close()


def test_the_winners_config_makes_its_model(tmp_path, pretrained):
    context = fake_context(tmp_path, pretrained)
    context.cache.close()
    reduction = {"name": "tome", "r_list": (0, 5, 5), "prop_attn": False}
    path = tmp_path / "search_gmacs_0.5.py"
    search.write_config(path, context, reduction, "half of the cost")
    config = cli.load_config(path)
    assert "'half of the cost'" in path.read_text()
    from_config.check(config)
    assert from_config.model(config) == pretrained.model(reduction)
    assert config.data.name == "digits" and config.data.resize == "none"
    config.data.workers = 0


CRAFTED = (
    '"""; open("ran", "w"); """',
    "'''\nopen('ran', 'w')\n'''",
    "{weights}\\",
    "caf\udce9",
)


@pytest.mark.parametrize("name", CRAFTED)
def test_no_name_runs_as_code_in_a_winners_config(
    tmp_path, monkeypatch, pretrained, name
):
    monkeypatch.chdir(tmp_path)
    context = fake_context(
        tmp_path, dataclasses.replace(pretrained, path=pathlib.Path(name))
    )
    context.cache.close()
    context.images.name = f"csv:{name}"
    path = tmp_path / "search_gmacs_0.5.py"
    reduction = {"name": "tome", "r": 3, "prop_attn": False}
    search.write_config(path, context, reduction, "half of the cost")
    assert cli.load_config(path).data.name == f"csv:{name}"
    assert not (tmp_path / "ran").exists()
    (about,) = (
        ast.literal_eval(node.value)
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign) and node.targets[0].id == "ABOUT"
    )
    assert about["weights"] == name and about["budget"] == "half of the cost"
