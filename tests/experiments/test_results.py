"""The file of results: its form, the tables made from it, the claims on it."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from scipy import special, stats

from experiments import intervals, recover, results, study
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate import compare_tables, statistics
from imagepiece_jax.evaluate.cache import encode_bits
from imagepiece_jax.models.spec import ModelSpec
from tests import markdown

RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def stored():
    return results.read_results(results.FILE.read_text("utf-8"))


def test_the_file_is_read_back_as_it_was(stored):
    text = results.FILE.read_text("utf-8")
    assert results.dump_results(stored) == text
    assert len(text.splitlines()) > len(stored.rows)


@pytest.fixture(scope="module")
def tables(stored):
    return results.tables(stored)


def test_tables_of_the_pages_are_made_from_the_file(tables):
    used = []
    for name in results.PAGES:
        text = (results.ROOT / name).read_text("utf-8")
        assert results.filled(text, tables) == text, name
        used += results.MARKED.findall(text)
    assert {name for _, name, _ in used} == set(tables)
    assert results.PLOT.is_file()


def test_photographs_were_taken_as_they_are(stored):
    """As `How we measure` says of all pages."""
    for source in stored.sources.values():
        if source.study in ("comparison", "controls"):
            assert "--resize none" in source.command
    words = markdown.section("docs/comparison.md", "How we measure")
    assert "`--resize none`" in words
    enlarged = study.enlarged(study.SIDE).text.partition(",")[0]
    assert enlarged in " ".join(words.split())


def cochran(right):
    """p of Cochran's Q (1950) that all models are right equally often."""
    right = np.asarray(right, float)
    models = len(right)
    solved = right.sum(axis=0)
    totals = right.sum(axis=1)
    spread = float(np.sum((totals - totals.mean()) ** 2))
    q = models * (models - 1) * spread / float(np.sum(solved * (models - solved)))
    return float(special.chdtrc(models - 1, q))


def line(method, share, **more):
    """A setting of a comparison of 1,000 images."""
    right = RANDOM.uniform(size=1000) < share
    figures = {"method": method, "share": share, "setting": {"r": 3}, "tokens": 9}
    figures |= {"gmacs": share, "acc1": list(statistics.accuracy(right))}
    return figures | {"right": encode_bits(right), "images": 1000} | more


def comparison(**more):
    """A comparison of a tiny model, as `compare` writes it."""
    return {
        "weights": "tiny.pth",
        "digest": "0123",
        "fields": {"name": "tiny"},
        "trained_as": "none",
        "images": {"data": "csv:photos", "resize": "none"},
        "metric": "gmacs",
        "shares": [0.5],
        "git": "0" * 40,
        "versions": {"jax": "1"},
        "dense": line("dense", 0.99),
        "settings": [line("random", 0.5), line("tome", 0.5)],
    } | more


def test_a_comparison_replaces_older_rows_of_its_methods_alone(stored):
    once = results.take_in(stored, comparison())
    assert once.rows[: len(stored.rows)] == stored.rows
    assert len(once.rows) == len(stored.rows) + 3
    assert once.sources["comparison-0000000"].model == "tiny"
    again = comparison(git="1" * 40, settings=[line("tome", 0.5, setting={"r": 4})])
    twice = results.take_in(once, again)
    assert len(twice.rows) == len(once.rows)
    assert [row.source[-7:] for row in twice.rows[-3:]] == ["1" * 7, "1" * 7, "0" * 7]
    # The first model of the file is that of the tables, also when it is measured anew.
    assert results.comparison_report(twice) == results.comparison_report(stored)
    dense = next(row for row in stored.rows if row.method == "dense")
    first = stored.sources[dense.source]
    anew = comparison(
        fields={"name": first.model},
        images={"data": first.data, "resize": "none"},
        dense=line("dense", 0.99),
        settings=[line("evit", 0.5)],
    )
    measured = results.comparison_report(results.take_in(twice, anew))
    assert measured["dense"]["source"] == "comparison-0000000"
    assert len(measured["settings"]) > 50
    with pytest.raises(InputError) as error:
        results.take_in(stored, comparison(metric="ms"))
    assert (error.value.field, error.value.value) == ("metric", "ms")


def test_only_tables_between_the_marks_are_written(tmp_path, monkeypatch, tables):
    for name in results.PAGES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(results.ROOT / name, tmp_path / name)
    page = tmp_path / "docs/tables/bundles.md"
    before = page.read_text("utf-8")
    line = next(line for line in before.splitlines() if line.startswith("| `evit`"))
    page.write_text(before.replace(line, "| `evit` | 99 |") + "99\n", "utf-8")
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(results, "tables", lambda _: tables)
    results.main([])
    assert page.read_text("utf-8") == before + "99\n"


def test_a_command_takes_a_comparison_in(tmp_path, monkeypatch, stored):
    (tmp_path / "results.json").write_text(results.dump_results(stored))
    (tmp_path / "new.json").write_text(json.dumps(comparison()))
    monkeypatch.setattr(results, "FILE", tmp_path / "results.json")
    monkeypatch.setattr(results, "PLOT", tmp_path / "plot.png")
    monkeypatch.setattr(results, "PAGES", ())  # the others are those of the docs
    results.main([str(tmp_path / "new.json")])
    found = results.read_results((tmp_path / "results.json").read_text("utf-8"))
    assert len(found.rows) == len(stored.rows) + 3
    assert (tmp_path / "plot.png").is_file()


@pytest.mark.parametrize(
    "changes, field",
    [
        ({"acc1": [50.0, 40.0, 60.0]}, "acc1"),  # not that of its bits
        ({"source": "none"}, "source"),
        ({}, "a row"),  # twice
    ],
)
def test_a_wrong_row_is_refused(stored, changes, field):
    wrong = dataclasses.replace(stored.rows[1], **changes)
    with pytest.raises(InputError) as error:
        dataclasses.replace(stored, rows=(*stored.rows, wrong))
    assert error.value.field == field


def worded(estimate, sign=""):
    """ "1.2 [0.1, 2.3]"; sign "+": with signs."""
    value, low, high = (f"{number:{sign}.1f}" for number in estimate)
    return f"{value} [{low}, {high}]"


def rights_of(stored, at):
    """Which images ImagePiece, its controls, EViT and ToMe have right, by shares."""
    rights = {(r.method, r.share): r.bits(1000) for r in stored.of("comparison")}
    found = {kind: [at[s][kind].bits(1000) for s in at] for kind in results.KINDS}
    methods = ("evit", "tome", "imagepiece_tome", "imagepiece")
    return found | {f"own {n}": [rights[n, s] for s in at] for n in methods}


def both_sides(one, other):
    """Two-sided p of Student's test that the mean difference is zero."""
    return stats.ttest_1samp(results.mean_points(one, other), 0).pvalue


def test_figures_of_the_comparison(stored):
    """docs/tables/bundles.md, by method and share."""
    report = results.comparison_report(stored)
    behind = compare_tables.comparison(report, "imagepiece", 0.6, "tome")["points"]
    value, high, low = (f"{-x:.1f}" for x in behind)
    rights = {(r.method, r.share): r.bits(1000) for r in stored.of("comparison")}
    lost = {
        each["method"]
        for each in report["comparisons"]
        if (each["share"], each["to"]) == (0.75, "dense") and each["holm"] < 0.05
    }
    every = {each["method"] for each in report["settings"] if each["share"] == 0.75}
    level = every - lost - set(results.CONTROLS)
    p = cochran([rights[m, 0.75] for m in level])
    right = rights_of(stored, results.path_of_controls(stored))
    more = results.mean_points(right["own imagepiece_tome"], right["own imagepiece"])
    fixed = results.fixed_controls(stored)
    pairs = []
    for row in stored.of("controls"):
        if row.method == "imagepiece_tome":
            merged = fixed[row.share]["merge"]
            pairs.append((row.bits(1000), merged.bits(1000)))
    p_values = [statistics.mcnemar(*pair) for pair in pairs]
    corrected = compare_tables.p_value(statistics.holm(p_values)[1])
    figures = {
        "imagepiece behind tome at .6": f"{value} [{low}, {high}]",
        "cochran": compare_tables.p_value(p),
        "imagepiece_tome ahead": worded(intervals.mean(more), "+"),
        "imagepiece_tome at .5": worded(statistics.paired_difference(*pairs[1])),
        "its p": compare_tables.p_value(p_values[1]),
        "its p, corrected": corrected.removeprefix("p = "),
    }
    assert not markdown.lacking(figures, "docs/tables/bundles.md")


def test_figures_of_imagepiece(stored):
    """docs/imagepiece.md: means over the shares, with their intervals."""
    right = rights_of(stored, results.path_of_controls(stored))

    def mean(one, other):
        return intervals.mean(results.mean_points(right[one], right[other]))

    p = [both_sides(right["merge"], right[kind]) for kind in results.KINDS[1:]]
    by_drop, by_random, _ = map(compare_tables.p_value, statistics.holm(p))
    pairs = zip(right["merge"], right["drop"], strict=True)
    lowest = min(statistics.mcnemar(*pair) for pair in pairs)
    fixed = rights_of(stored, results.fixed_controls(stored))
    ahead = intervals.mean(results.mean_points(fixed["tome"], fixed["merge"]))
    figures = {
        "imagepiece - evit": f"{mean('merge', 'own evit').value:.1f}",
        "dropping - evit": f"{mean('drop', 'own evit').value:.1f}",
        "imagepiece - dropping": worded(mean("merge", "drop")),
        "its p": compare_tables.p_value(p[0]),
        "its p, corrected": by_drop,
        "imagepiece - random": worded(mean("merge", "random")),
        "its p, corrected, of random": by_random,
        "least p of a share": f"{lowest:.3f}".removeprefix("0"),
        "matching - imagepiece": worded(mean("tome", "merge")),
        "tome - matching": worded(mean("own tome", "tome")),
        "matching - imagepiece, merge ratio .08": worded(ahead),
    }
    assert not markdown.lacking(figures, "docs/imagepiece.md")


def test_what_readme_types_is_what_it_shows(tables):
    """Each argument makes the student whose figures stand in its row."""
    config = ModelSpec(name="deit_tiny_patch16_224", image_size=224)
    for typed, (name, _) in results.TYPED.items():
        argument, _, value = typed.partition("=")
        student = recover.STUDENTS[name]
        if argument == "image_size":
            assert student.reduction is None
            assert student.image_size == int(value)
            continue
        made, shown = map(config.create_at_cost, (float(value), student.reduction))
        for ours, theirs in zip(made.plan, shown.plan, strict=True):
            assert ours.counts == theirs.counts
            reducers = [
                layer.step and type(layer.step.reducer) for layer in (ours, theirs)
            ]
            assert reducers[0] == reducers[1]
    (rows,) = markdown.tables(tables["readme"])
    assert len(rows) <= 6
    assert len(rows[0]) <= 6
