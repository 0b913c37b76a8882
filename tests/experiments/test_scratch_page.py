"""The page of training from scratch, from runs that were never trained."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import intervals
from experiments.scratch import page, runs, systems
from imagepiece_jax.config.run import RunConfig
from imagepiece_jax.evaluate import statistics
from tests import markdown
from tests.experiments.scratch_pages import tiny_options
from tests.runs import ROOT

IMAGES = 400
RATES = {"dense_conv": 0.8, "random": 0.5, "imagepiece_conv": 0.78}  # the others: 0.65


@pytest.fixture(scope="module")
def plan():
    options = tiny_options()
    fields = options, 2, "float32"
    settings = systems.RECIPE | dataclasses.asdict(options) | {"dtype": "float32"}
    facts = [
        runs._facts(each, RunConfig.from_config(systems.config(each, *fields)))
        for each in systems.systems(*fields)
    ]
    return {
        "settings": settings,
        "images": [1000, IMAGES, 2],
        "data": "folder:flowers",
        "systems": facts,
    }


def results(plan, seeds=(0, 1, 2)):
    """Runs whose images are right by chance, at the rates above."""
    rng, found = np.random.default_rng(0), []
    for each in plan["systems"]:
        for seed in seeds:
            right = rng.random(IMAGES) < RATES.get(each["name"], 0.65)
            found.append(
                {
                    "system": each["name"],
                    "seed": seed,
                    "images": IMAGES,
                    "right": np.packbits(right).tobytes().hex(),
                    "acc1": 100 * right.mean(),
                    "settings": plan["settings"],
                    "seconds": [60.0, 60.0],
                    "device": "a computer",
                }
            )
    return found


def cells(text, title):
    """The cells of a system's line."""
    (line,) = [x for x in text.splitlines() if x.startswith(f"| {title} |")]
    return markdown.cells(line)


def test_a_line_is_what_the_runs_say(plan):
    found = [r for r in results(plan) if r["system"] in RATES]
    rights = {
        name: [page.bits(r) for r in found if r["system"] == name] for name in RATES
    }
    line = cells(page.text(found, plan), "ImagePiece, conv stem")
    means = [100 * right.mean() for right in rights["imagepiece_conv"]]
    assert line[4].startswith(f"{np.mean(means):.1f} [")
    assert line[5] == " ".join(f"{mean:.1f}" for mean in means)
    for cell, base in ((line[6], "dense_conv"), (line[7], "random")):
        ours, theirs = np.array(rights["imagepiece_conv"]), np.array(rights[base])
        change = intervals.hierarchical_bootstrap(100.0 * ours - 100.0 * theirs)
        assert cell == statistics.format_difference(change)


def test_a_page_of_some_runs_says_so(plan):
    found = [r for r in results(plan, (0,)) if r["system"] in ("dense_conv", "evit")]
    text = page.text(found, plan)
    assert "| seeds | 0 |" in text and "| runs | 2 of 12 |" in text
    assert cells(text, "ToMe")[4] == "not measured"
    assert cells(text, "EViT")[7] == ""  # no random tokens to compare with
    assert "| runs | 0 of 0 |" in page.text([], plan)


def test_seeds_of_one_system_alone_are_not_compared(plan):
    found = results(plan)
    found = [r for r in found if r["system"] != "random" or r["seed"] == 1]
    ours, base = (
        {r["seed"]: page.bits(r) for r in found if r["system"] == name}
        for name in ("evit", "random")
    )
    change = page.difference(ours, base)
    single = 100.0 * ours[1].astype(float) - 100.0 * base[1]
    assert change == intervals.hierarchical_bootstrap([single])


def test_from_four_seeds_on_intervals_are_students(plan):
    found = results(plan, (0, 1, 2, 3, 4))
    text = page.text(found, plan)
    rights = {
        name: np.array([page.bits(r).mean() for r in found if r["system"] == name])
        for name in ("evit", "random")
    }
    line = cells(text, "EViT")
    ours = intervals.student(100 * rights["evit"])
    assert line[4] == statistics.format_estimate(ours)
    change = intervals.student(100 * (rights["evit"] - rights["random"]))
    assert line[7] == statistics.format_difference(change)


def test_some_systems_alone_have_a_page(plan):
    plan = plan | {"systems": [s for s in plan["systems"] if "patch" in s["name"]]}
    text = page.text(results(plan, range(4)), plan)
    assert cells(text, "dropping, patch stem")[6:8] == ["", ""]


def test_the_page_has_the_settings_and_what_started_from_another(plan):
    text = page.text(results(plan), plan)
    assert "| data | folder:flowers |" in text and "| width | 16 |" in text
    assert "| training images | 1,000 |" in text and "| epochs | 2 |" in text
    assert "| hours of training | 1.2 |" in text and "| devices | a computer |" in text
    assert cells(text, "DynamicViT")[3] == "dense_conv"
    assert cells(text, "EViT")[3] == ""


def test_the_runs_of_the_declared_experiment_are_read():
    folder = ROOT / "docs" / "tables" / "retokenization"
    plan = json.loads((folder / "plan.json").read_text())
    results = runs.finished(folder, plan)
    assert results and f"| runs | {len(results)} of " in page.text(results, plan)
