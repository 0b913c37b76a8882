"""The file of results: its form, the tables made from it, the claims on it."""

import base64
import json
import shutil

import numpy as np
import pytest
from scipy import special

from experiments import parts, results
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate import compare, compare_tables, statistics

SHARES = [0.9, 0.75, 0.6, 0.5, 0.4]
RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def kept():
    return results.read_results(results.FILE.read_text("utf-8"))


@pytest.fixture(scope="module")
def report(kept):
    return results.comparison_report(kept)


def test_the_file_is_read_back_as_it_was(kept):
    text = results.FILE.read_text("utf-8")
    assert results.dump_results(kept) == text
    assert len(text.splitlines()) > len(kept.rows)


def test_tables_of_the_pages_are_made_from_the_file(kept):
    made, used = results.tables(kept, *results.declared_runs()), []
    for name in results.PAGES:
        text = (results.ROOT / name).read_text("utf-8")
        assert results.filled(text, made) == text, name
        used += results.MARKED.findall(text)
    assert {name for _, name, _ in used} == set(made)
    assert results.PLOT.is_file()


def cochran(right):
    """p of Cochran's Q (1950) that all models are right equally often."""
    right = np.asarray(right, float)
    models, solved, totals = len(right), right.sum(axis=0), right.sum(axis=1)
    spread = float(np.sum((totals - totals.mean()) ** 2))
    q = models * (models - 1) * spread / float(np.sum(solved * (models - solved)))
    return float(special.chdtrc(models - 1, q))


def bits(right):
    return base64.b64encode(np.packbits(right).tobytes()).decode()


def line(method, share, **more):
    """A setting of a comparison of 1,000 images."""
    right = RANDOM.uniform(size=1000) < share
    figures = {"method": method, "share": share, "setting": {"r": 3}, "tokens": 9}
    figures |= {"gmacs": share, "acc1": list(statistics.accuracy(right))}
    return figures | {"right": bits(right), "images": 1000} | more


def made_up(**more):
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


def test_a_comparison_replaces_older_rows_of_its_methods_alone(kept):
    once = results.take_in(kept, made_up())
    assert once.rows[: len(kept.rows)] == kept.rows
    assert len(once.rows) == len(kept.rows) + 3
    assert once.sources["comparison-0000000"].model == "tiny"
    again = made_up(git="1" * 40, settings=[line("tome", 0.5, setting={"r": 4})])
    twice = results.take_in(once, again)
    assert len(twice.rows) == len(once.rows)
    assert [row.source[-7:] for row in twice.rows[-3:]] == ["1" * 7, "1" * 7, "0" * 7]
    # The first model of the file is that of the tables, also when it is measured anew.
    assert results.comparison_report(twice) == results.comparison_report(kept)
    dense = next(row for row in kept.rows if row.method == "dense")
    first = kept.sources[dense.source]
    anew = made_up(
        fields={"name": first.model},
        images={"data": first.data, "resize": "none"},
        dense=line("dense", 0.99),
        settings=[line("evit", 0.5)],
    )
    measured = results.comparison_report(results.take_in(twice, anew))
    assert measured["dense"]["source"] == "comparison-0000000"
    assert len(measured["settings"]) > 50
    with pytest.raises(InputError, match="metric is ms; allowed: gmacs"):
        results.take_in(kept, made_up(metric="ms"))


def one_more(row):
    """A setting of a comparison as in `row`, of 1,000 images, with one more right."""
    right = row.bits(1000).copy()
    right[np.argmin(right)] = True
    figures = {"setting": row.setting, "gmacs": row.gmacs, "tokens": row.tokens}
    figures |= {"right": bits(right), "acc1": list(statistics.accuracy(right))}
    return line(row.method, row.share) | figures


def test_the_tool_writes_between_the_marks_alone(tmp_path, monkeypatch, kept):
    for name in results.PAGES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(results.ROOT / name, tmp_path / name)
    (tmp_path / "results.json").write_text(results.dump_results(kept))
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(results, "FILE", tmp_path / "results.json")
    monkeypatch.setattr(results, "PLOT", tmp_path / "plot.png")
    before = (tmp_path / "docs/tables/bundles.md").read_text("utf-8")
    dense, rest = kept.rows[0], [row for row in kept.rows[1:] if row.method == "evit"]
    images = kept.sources[dense.source].images
    other = made_up(
        digest=kept.sources[dense.source].weights,
        fields={"name": kept.sources[dense.source].model},
        images={"data": kept.sources[dense.source].data, "resize": "none"},
        dense=line("dense", 0.99) | {"right": dense.right, "acc1": dense.acc1},
        settings=[one_more(row) for row in rest if row.share],
    )
    (tmp_path / "new.json").write_text(json.dumps(other | {"images": other["images"]}))
    results.main([str(tmp_path / "new.json")])
    after = (tmp_path / "docs/tables/bundles.md").read_text("utf-8")
    assert images == 1000 and after != before
    differ = [
        pair
        for pair in zip(before.split("\n"), after.split("\n"), strict=True)
        if pair[0] != pair[1]
    ]
    assert [one[:8] for one, _ in differ] == ["| `evit`"]
    assert (tmp_path / "plot.png").is_file()


@pytest.mark.parametrize(
    "path, value, message",
    [
        (("results", 1, "acc1"), [80, 90, 70], r"results\[1\]: acc1 is \[80, 90, 70\]"),
        (("results", 1, "acc1"), [50.0, 40.0, 60.0], r"acc1 is \[50.0"),
        (("results", 1, "gmacs"), 0, r"results\[1\]: gmacs is 0; allowed: numbers"),
        (("results", 1, "share"), 60, r"results\[1\]: share is 60"),
        (("results", 1, "source"), "none", "source is .*none"),
        (("results", 1, "speed"), 3, r"results\[1\]: .*unexpected .*'speed'"),
        (("results", 1, "setting"), "r=3", r"results\[1\]: setting is 'r=3'"),
        (("sources", "SOURCE", "commit"), "main", "commit is 'main'; allowed: 40"),
        (("sources", "SOURCE", "study"), "new", "study is 'new'; allowed: 'comp"),
        (
            ("sources", "SOURCE", "images"),
            0,
            "images is 0; allowed: whole numbers from 1",
        ),
        (("sources", "SOURCE", "command"), "by hand", "command is 'by hand'"),
    ],
)
def test_a_row_that_is_not_as_it_must_be_is_named(kept, path, value, message):
    found = json.loads(results.dump_results(kept))
    source = found["results"][1]["source"]
    *way, last = (source if step == "SOURCE" else step for step in path)
    place = found
    for step in way:
        place = place[step]
    place[last] = value
    with pytest.raises(InputError, match=message):
        results.read_results(json.dumps(found))


def test_no_row_stands_there_twice(kept):
    found = json.loads(results.dump_results(kept))
    found["results"].append(found["results"][1])
    with pytest.raises(InputError, match="a row is .* of different settings"):
        results.read_results(json.dumps(found))


def test_intervals_of_adaptations_are_students_over_the_folds(kept):
    for row in kept.of("adaptation"):
        assert row.differences["unadapted"] == pytest.approx(
            statistics.student(row.parts)
        )
    low = {row.method: row.differences["unadapted"][1] for row in kept.of("adaptation")}
    assert low["evit"] > 0 > max(low["imagepiece"], low["tome"])


def text_of(name):
    """A page in one line."""
    return " ".join((results.ROOT / name).read_text("utf-8").split())


def level(report, share, margin=3):
    """Methods whose whole interval of the difference to dense is above -margin."""
    return {
        each["method"]
        for each in report["comparisons"]
        if (each["share"], each["to"]) == (share, "dense")
        and each["points"][1] > -margin
    }


def test_claims_of_the_comparison(kept, report):
    """Sentences of docs/tables/bundles.md, worked out from the rows."""
    at = {share: set() for share in SHARES}
    for each in report["settings"]:
        at[each["share"]].add(each["method"])
    assert at[0.9] - level(report, 0.9) == {"grid_pooling"}
    assert level(report, 0.75) == {
        *("tome", "diffrate", "pitome", "mctf", "atc"),
        *("imagepiece", "imagepiece_tome"),
    }
    assert level(report, 0.6) == {"diffrate", "mctf", "atc"}
    assert not level(report, 0.5) | level(report, 0.4)
    tome = [each for each in report["comparisons"] if each["to"] == "tome"]
    assert not [e for e in tome if e["points"][0] > 0 and e["holm"] < 0.05]
    lost = {
        each["method"]
        for each in report["comparisons"]
        if (each["share"], each["to"]) == (0.75, "dense") and each["holm"] < 0.05
    }
    assert lost == {"token_pooling", "grid_pooling"}
    rights = {(r.method, r.share): r.bits(1000) for r in kept.of("comparison")}
    others = at[0.75] - lost - set(compare.CONTROLS)
    p = cochran([rights[method, 0.75] for method in others])
    assert len(others) == 11 and compare_tables.p_value(p) == "p = .022"
    said = text_of("docs/tables/bundles.md")
    assert (
        "the other eleven methods, random tokens counted and ImagePiece's controls "
        "not, are not all alike (Cochran's Q, p = .022)"
    ) in said
    for share in SHARES:  # ImagePiece beside ToMe
        value, low, high = compare_tables.comparison(
            report, "imagepiece", share, "tome"
        )["points"]
        assert -3 < low < high < 3 if share > 0.7 else high < 0
    behind = compare_tables.comparison(report, "imagepiece", 0.6, "tome")["points"]
    value, high, low = (f"{-x:.1f}" for x in behind)
    assert f"At 0.6 it is {value} [{low}, {high}] points behind" in said
    for share in (0.6, 0.5, 0.4):  # EViT against random tokens
        each = compare_tables.comparison(report, "evit", share, "random")
        assert each["points"][1] < 0


def shown(estimate, sign=""):
    """ "1.2 [0.1, 2.3]"; sign "+": with signs."""
    value, low, high = (f"{number:{sign}.1f}" for number in estimate)
    return f"{value} [{low}, {high}]"


def rights_of(kept, at):
    """Which images ImagePiece, its controls, EViT and ToMe have right, by shares."""
    rights = {(r.method, r.share): r.bits(1000) for r in kept.of("comparison")}
    found = {kind: [at[s][kind].bits(1000) for s in at] for kind in results.KINDS}
    return found | {f"own {n}": [rights[n, s] for s in at] for n in ("evit", "tome")}


def mean(one, other):
    """Points that `one` has more, the mean over the shares, with its interval."""
    return statistics.mean(results.mean_points(one, other))


def both_sides(one, other):
    """Two-sided p of Student's test that this mean is zero."""
    p = statistics.student_p(results.mean_points(one, other), 0)
    return 2 * min(p, 1 - p)


def test_the_controls_of_fixed_merge_ratio_are_kept(kept):
    at = results.fixed_controls(kept)
    keep = {0.6: 0.9, 0.5: 0.77, 0.4: 0.62}
    names = ("merge", "drop")
    accuracies = {s: [round(at[s][kind].acc1[0], 1) for kind in names] for s in at}
    assert accuracies == {0.6: [79.6, 77.8], 0.5: [74.5, 73.4], 0.4: [64.0, 64.6]}
    for share, variants in at.items():
        assert {row.setting["keep_rate"] for row in variants.values()} == {keep[share]}
        assert {row.source for row in variants.values()} == {"controls-fd09b83"}
    made = results.tables(kept, *results.declared_runs())["controls-fixed"]
    for figures in ("+1.8 [-0.2, +3.8]", "+1.1 [-1.2, +3.4]", "-0.6 [-3.2, +2.0]"):
        assert made.count(figures) == 1
    # Zero is in the intervals of both means that the page says so of.
    right = rights_of(kept, at)
    assert mean(right["merge"], right["drop"]).low < 0
    assert -0.15 < mean(right["merge"], right["random"]).low < 0
    said = text_of("docs/imagepiece.md")
    ahead = shown(mean(right["tome"], right["merge"]))
    assert f"{ahead} points on average at merge ratio .08" in said


def test_claims_on_imagepiece(kept):
    """Its lead over EViT and over its controls."""
    at = results.path_of_controls(kept)
    assert list(at) == SHARES
    right = rights_of(kept, at)
    said = text_of("docs/imagepiece.md")
    lead = [
        statistics.paired_difference(*pair)
        for pair in zip(right["merge"], right["own evit"], strict=True)
    ]
    values = [each.value for each in lead]
    assert (round(min(values)), round(max(values))) == (0, 29)
    assert all(each.low > 0 for each in lead[2:])
    whole = mean(right["merge"], right["own evit"]).value
    schedule = mean(right["drop"], right["own evit"]).value
    assert f"has {schedule:.1f} of ImagePiece's {whole:.1f} points" in said
    leads = [
        statistics.paired_difference(*pair)
        for pair in zip(right["drop"], right["own evit"], strict=True)
    ]
    assert [each.low > 0 for each in leads] == [False] * 3 + [True] * 2
    # Merging against dropping.
    pairs = list(zip(right["merge"], right["drop"], strict=True))
    assert all(statistics.paired_difference(*pair).value > 0 for pair in pairs)
    p = min(statistics.mcnemar(*pair) for pair in pairs)
    assert f"McNemar's exact p is {p:.3f} or more".replace("0.", ".") in said
    added = mean(right["merge"], right["drop"])
    p = [both_sides(right["merge"], right[kind]) for kind in results.KINDS[1:]]
    alone = compare_tables.p_value(p[0])
    by_drop, by_random, _ = (compare_tables.p_value(x) for x in statistics.holm(p))
    assert f"The mean of {shown(added)} points" in said
    assert f"({alone} by Student's" in said and f"({by_drop})" in said
    similarity = shown(mean(right["merge"], right["random"]))
    assert f"worth {similarity} points on average ({by_random}, corrected" in said
    ahead = [np.mean(right["tome"][i]) - np.mean(right["merge"][i]) for i in range(5)]
    assert max(ahead[:2]) < 0 < min(ahead[2:])
    matching = mean(right["tome"], right["merge"])
    assert f"by {shown(matching)} over the five costs" in said
    steps = mean(right["own tome"], right["tome"])
    assert f"is {shown(steps)} points ahead of that control" in said


def test_claims_on_imagepiece_with_tome(kept):
    """What ToMe's merging in place of pruning adds, at either path of settings."""
    said = text_of("docs/tables/bundles.md")
    rights = {(r.method, r.share): r.bits(1000) for r in kept.of("comparison")}
    pairs = [[rights[n, s] for s in SHARES] for n in ("imagepiece_tome", "imagepiece")]
    assert f"by {shown(mean(*pairs), '+')} points, averaged over the five costs" in said
    for pair in zip(*pairs, strict=True):
        assert statistics.is_noise(statistics.paired_difference(*pair))
    fixed = results.fixed_controls(kept)
    pairs = {
        row.share: (row.bits(1000), fixed[row.share]["merge"].bits(1000))
        for row in kept.of("controls")
        if row.method == "imagepiece_tome"
    }
    assert list(pairs) == [0.6, 0.5, 0.4]
    p = [statistics.mcnemar(*pair) for pair in pairs.values()]
    alone, corrected = (
        compare_tables.p_value(x) for x in (p[1], statistics.holm(p)[1])
    )
    added = shown(statistics.paired_difference(*pairs[0.5]))
    assert (
        f"it added {added} points at 0.5 "
        f"({alone}; {corrected[4:]} when corrected for three costs)"
    ) in said


def test_figures_of_the_crossed_parts():
    """Those of sentences; the cells of tables are written by the tool."""
    found = parts.kept(results.PARTS)

    def kl(*cell):
        return f"{found[parts.Cell(*cell, parts.COST)].of(parts.ODD).kl.mean():.3f}"

    said = text_of("docs/imagepiece.md")
    dropped = [
        kl("evit", "dropped", schedule, False)
        for schedule in ("imagepiece", "stages-3-6-9", "proportional")
    ]
    merged = [
        kl("tome", "merged", schedule, True) for schedule in ("imagepiece", "diffrate")
    ]
    assert sorted(dropped)[1] == dropped[0] and merged[1] < merged[0]
    for figure in (*dropped, *merged):
        assert figure in said
    third = parts.contrasts(found)[2].estimate.value
    assert f"by {np.exp(third):.1f}." in text_of("docs/comparison.md")
