"""The file of results: its form, the tables made from it, the claims on it."""

import base64
import json
import shutil

import numpy as np
import pytest

from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate import statistics
from imagepiece_jax.experiments import compare_page
from tools import results

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
    made, used = results.tables(kept), []
    for name in results.PAGES:
        text = (results.ROOT / name).read_text("utf-8")
        assert results.filled(text, made) == text, name
        used += results.MARKED.findall(text)
    assert {name for _, name, _ in used} == set(made)
    assert results.PLOT.is_file()


def bits(right):
    return base64.b64encode(np.packbits(right).tobytes()).decode()


def line(method, share, **more):
    """A setting of a comparison of 1,000 images."""
    right = RANDOM.uniform(size=1000) < share
    figures = {"method": method, "share": share, "setting": {"r": 3}, "tokens": 9}
    figures |= {"gmacs": share, "acc1": list(statistics.accuracy(right))}
    return figures | {"right": bits(right), "images": 1000} | more


def made_up(**more):
    """A comparison of a tiny model, as `experiments compare` writes it."""
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
    assert [row.source[-7:] for row in twice.rows[-3:]] == ["0" * 7, "1" * 7, "1" * 7]
    # The first model of the file is that of the tables.
    assert results.comparison_report(twice) == results.comparison_report(kept)
    with pytest.raises(InputError, match="metric is ms; allowed is gmacs"):
        results.take_in(kept, made_up(metric="ms"))


def test_the_tool_writes_between_the_marks_alone(tmp_path, monkeypatch, kept):
    for name in results.PAGES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(results.ROOT / name, tmp_path / name)
    (tmp_path / "results.json").write_text(results.dump_results(kept))
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(results, "FILE", tmp_path / "results.json")
    monkeypatch.setattr(results, "PLOT", tmp_path / "plot.png")
    before = (tmp_path / "README.md").read_text("utf-8")
    dense, rest = kept.rows[0], [row for row in kept.rows[1:] if row.method == "evit"]
    images = kept.sources[dense.source].images
    other = made_up(
        digest=kept.sources[dense.source].weights,
        fields={"name": kept.sources[dense.source].model},
        images={"data": kept.sources[dense.source].data, "resize": "none"},
        dense=line("dense", 0.99) | {"right": dense.right, "acc1": dense.acc1},
        settings=[line("evit", row.share) for row in rest if row.share],
    )
    (tmp_path / "new.json").write_text(json.dumps(other | {"images": other["images"]}))
    results.main([str(tmp_path / "new.json")])
    after = (tmp_path / "README.md").read_text("utf-8")
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
        (("results", 1, "gmacs"), 0, r"results\[1\]: gmacs is 0; allowed are numbers"),
        (("results", 1, "share"), 60, r"results\[1\]: share is 60"),
        (("results", 1, "source"), "none", "source is .*none"),
        (("results", 1, "speed"), 3, r"results\[1\]: .*unexpected .*'speed'"),
        (("results", 1, "setting"), "r=3", r"results\[1\]: setting is 'r=3'"),
        (("sources", "SOURCE", "commit"), "main", "commit is 'main'; allowed are 40"),
        (("sources", "SOURCE", "study"), "new", "study is 'new'; allowed are comp"),
        (("sources", "SOURCE", "images"), 0, "images is 0; allowed are numbers above"),
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
    """Sentences of docs/comparison.md, worked out from the rows."""
    at = {share: set() for share in SHARES}
    for each in report["settings"]:
        at[each["share"]].add(each["method"])
    assert at[0.9] - level(report, 0.9) == {"grid_pooling"}
    assert level(report, 0.75) == {"tome", "diffrate", "pitome", "mctf", "atc"}
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
    others = at[0.75] - lost
    p = statistics.cochran([rights[method, 0.75] for method in others])
    assert len(others) == 9 and compare_page.p_value(p) == "p = .018"
    assert "the other nine are not all alike (Cochran's Q, p = .018)" in text_of(
        "docs/comparison.md"
    )
    for share in (0.6, 0.5, 0.4):  # EViT against random tokens
        each = compare_page.comparison(report, "evit", share, "random")
        assert each["points"][1] < 0


def test_claims_on_imagepiece(kept, report):
    """Its lead over EViT, over its control, what ToMe adds; docs and README alike."""
    rights = {(r.method, r.share): r.bits(1000) for r in kept.of("comparison")}
    controls = {
        (r.setting["inattentive"], r.share): r.bits(1000) for r in kept.of("controls")
    }

    def points(one, other):
        return statistics.paired_difference(one, other)

    said = text_of("docs/imagepiece.md")
    ahead = []
    for share in (0.6, 0.5, 0.4):
        merge, drop = controls["merge", share], controls["drop", share]
        ahead.append(
            [
                points(merge, rights["evit", share]).value,
                points(drop, rights["evit", share]).value,
                points(merge, drop).value,
            ]
        )
        assert points(merge, drop).low < 0 < points(merge, drop).high
    assert np.round(ahead, 1).tolist() == [
        [2.6, 0.8, 1.8],
        [6.8, 5.7, 1.1],
        [25.8, 26.4, -0.6],
    ]
    for figures in ("0.8, 5.7 and 26.4 points", "2.6, 6.8 and 25.8"):
        assert figures in said and figures in text_of("README.md")
    assert "+1.8, +1.1 and -0.6 points" in said
    for control, each, mean in (
        ("random", "+2.1, +1.0 and +2.0", "+1.7 [-0.1, +3.5]"),
        ("drop", "+1.8, +1.1 and -0.6", "+0.8 [-0.9, +2.4]"),
        ("tome", "0.5, 3.2 and 4.3 points", "2.7 [0.9, 4.5]"),
    ):
        sign = -1 if control == "tome" else 1
        gains = [
            100.0 * sign * (controls["merge", s].astype(float) - controls[control, s])
            for s in (0.6, 0.5, 0.4)
        ]
        over = statistics.mean(np.mean(gains, axis=0))
        signed = "" if control == "tome" else "+"
        low, value, high = (
            f"{x:{signed}.1f}" for x in (over.low, over.value, over.high)
        )
        assert mean == f"{value} [{low}, {high}]"
        values = [f"{gain.mean():{signed}.1f}" for gain in gains]
        assert each.startswith(f"{values[0]}, {values[1]} and {values[2]}")
        assert mean in said and each in said
    for share in (0.6, 0.5, 0.4):  # ToMe in its own steps, and in ImagePiece's
        ahead = points(rights["tome", share], controls["tome", share]).value
        assert 2.95 < ahead < 3.45
    p = []
    for share in (0.6, 0.5, 0.4):
        pair = rights["imagepiece_tome", share], rights["imagepiece", share]
        p.append(statistics.mcnemar(*pair))
    assert [compare_page.p_value(each) for each in (p[1], statistics.holm(p)[1])] == [
        "p = .008",
        "p = .023",
    ]
    assert "2.9 [0.8, 5.0] points at 0.5 (p = .008, of three tests .023)" in text_of(
        "docs/comparison.md"
    )


def test_claims_of_the_limits(kept):
    """Prototypes on a GPU, from docs/performance.md; DynamicViT from scratch."""
    page, said = text_of("docs/performance.md"), text_of("README.md")

    def speeds(row):
        cell = page.split(f"| {row} | ")[1].split(" |")[0]
        texts = [each.split(" at ")[0] for each in cell.split("; ")]
        return [float(text.replace(",", "")) for text in texts]

    dense, _ = speeds("+ no Triton products (cuBLASLt fuses bias, GELU and residual)")
    fast, _ = speeds("ImagePiece DeiT-S on top of that (patch stem, 2.52 GMACs)")
    tiny = speeds("dense DeiT-Ti; ImagePiece DeiT-Ti")
    assert f"{fast / dense:.2f} times as fast as the dense DeiT-S" in said
    assert f"{tiny[1] / tiny[0]:.2f} times as fast as DeiT-Ti" in said
    (dynamicvit,) = (r for r in kept.of("scratch") if r.method == "DynamicViT")
    gain = dynamicvit.differences["random tokens"][0]
    assert f"from scratch DynamicViT does, by {gain:.1f} points" in said
