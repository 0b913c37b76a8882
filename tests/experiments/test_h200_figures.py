"""Figures of PERFORMANCE.md that were measured on an H200, from their files."""

import itertools
import json

import pytest

from tests import markdown
from tests.runs import ROOT
from tools import gpu_speed

FOLDER = ROOT / "docs" / "tables" / "h200"
PAGE = markdown.section("PERFORMANCE.md")
TEXT = " ".join(PAGE.split())
HALVES, FORMS, SETTINGS, *OTHERS = markdown.tables(PAGE)
PROGRAMS, TRAINING, KERNELS, ALONE, ATTENTION, ODD, _ = OTHERS
# Rows of the table of kernels, in its order, and kinds of kernels of its columns.
TRACED = ("dense", "three", "tome", "imagepiece")
KINDS = {
    "products": "products, bfloat16",
    "attention": "attention",
    "embedding": "embedding",
    "fused reductions": "fused reductions",
    "float32 products": "products, float32",
}


# Models of the table of halves, as `tools.gpu_speed` calls them, and their reductions.
SIZES = {
    "DeiT-Ti": ("deit_ti", "fast"),
    "DeiT-S": ("deit_s", "fast"),
    "ViT-L/16": ("vit_l", "exact"),
    "So400m/14": ("so400m", "exact"),
    "DINOv3-L/16, 512": ("dinov3_l", "exact"),
}
BATCHES = {"batches of 256": 256, "of 8": 8, "of 1": 1}


def test_halves_are_those_of_the_files():
    timed = gpu_speed.groups(lines_of("forms") + lines_of("large")).values()
    assert [row["model"] for row in HALVES] == list(SIZES)
    for row in HALVES:
        size, form = SIZES[row["model"]]
        for column, batch in BATCHES.items():
            found = []
            for group in timed:
                reduced = reduced_of(group, size=size, batch=batch, reductions=form)
                found += [(each, gpu_speed.dense_of(each, group)) for each in reduced]
            if not row[column]:
                assert not found
                continue
            ((half, dense),) = found
            assert row[column] == gpu_speed.cell(half["ratio"])
            if batch == 256:
                rates = (f"{each['rate'][0]:,.0f}" for each in (dense, half))
                assert tuple(rates) == (row["dense, images/s"], row["half, images/s"])


def reduced_of(group, **known):
    """Lines of models at half of their MACs in the GELU that a GPU takes."""
    known |= {"gelu": "tanh"}
    halves = [row for row in group if row["model"] in gpu_speed.HALVES]
    found = [row for row in halves if row["sizes"] != "bias" or "dino" in row["size"]]
    return [row for row in found if known.items() <= row.items()]


# Columns of the table of forms: GELU, sizes, reductions.
FORMS_OF = {
    "exact GELU, bias": ("exact", "bias", "exact"),
    "exact GELU, direction": ("exact", "direction", "exact"),
    "tanh GELU, bias": ("tanh", "bias", "exact"),
    "tanh GELU, direction": ("tanh", "direction", "exact"),
    "and fast reductions": ("tanh", "direction", "fast"),
}


def test_forms_are_those_of_the_file():
    """The first run of those that timed one program."""
    names = ("size", "model", "gelu", "sizes", "reductions")
    found = {}
    for line in lines_of("forms"):
        key = tuple(line[name] for name in names)
        found.setdefault(key, gpu_speed.cell(line["ratio"]))
    for row in FORMS:
        size, _ = SIZES[row["model"]]
        for column, form in FORMS_OF.items():
            assert row[column] == found.get((size, row["reduction"], *form), "")


def test_imagepiece_is_timed_with_both_stems():
    figures = {}
    for line in lines_of("forms"):
        if line["model"].startswith("ImagePiece"):
            figures[line["stem"], line["gelu"]] = gpu_speed.cell(line["ratio"])
    assert len(figures) == 4
    for figure in figures.values():
        assert figure in TEXT


def test_settings_are_those_of_the_clock():
    lines = (ROOT / "docs/tables/parts/clock.jsonl").read_text("utf-8").splitlines()
    measured = [json.loads(line) for line in lines]
    columns = {"H200": "DeiT-Ti", "H200, DeiT-S": "DeiT-S"}
    for row in SETTINGS:
        for runtime, column in columns.items():
            place = (runtime, row["setting"])
            (found,) = (m for m in measured if (m["runtime"], m["model"]) == place)
            ratios = markdown.interval(row[column])
            assert ratios == pytest.approx(found["ratio"], abs=0.0051)
        assert float(row["by MACs"]) == pytest.approx(found["macs"], abs=0.0051)


@pytest.mark.parametrize(
    "table, name", [(PROGRAMS, "programs"), (TRAINING, "training")]
)
def test_speeds_are_those_of_the_file(table, name):
    measured = lines_of(name)
    assert len(measured) == len(table)
    for row, found in zip(table, measured, strict=True):
        rates = [found[name] for name in ("throughput", "throughput_min")]
        rates.append(found["throughput_max"])
        median, low, high = (f"{rate:,.0f}" for rate in rates)
        assert row["img/s (lowest to highest)"] == f"{median} ({low} to {high})"
        ratios = markdown.interval(row["times our dense"])
        known = [found[name] for name in ("ratio", "ratio_min", "ratio_max")]
        assert ratios == pytest.approx(known[: len(ratios)], abs=0.0051)
        assert float(row["by MACs"]) == pytest.approx(found["mac_ratio"], abs=0.0051)
        if "GB" in row:
            gigabytes = found["peak_memory"] / 1e9
            assert float(row["GB"]) == pytest.approx(gigabytes, abs=0.051)


def test_measured_steps_are_compared_with_their_estimates():
    """Estimates stand in the table of odd lengths, "kernels, ms"."""
    padded = "padded (kernels, estimated ms)"
    measured = {row["config"]: row["ms"] for row in lines_of("training")}
    pages = ["docs/tables/trainings.md", "docs/questions.md"]
    for row, config in zip(ODD, ("deit_s", "deit_s_imagepiece"), strict=True):
        estimate = float(row[padded].rpartition(" ")[2])
        assert f"{estimate:.1f}" in TEXT
        assert f"{measured[config]:.1f}" in TEXT
        longer = {config: f"{measured[config] / estimate:.2f}"}
        for page in pages:
            assert not markdown.lacking(longer, page)


def lines_of(name):
    """What a file of the folder says, line by line."""
    lines = (FOLDER / f"{name}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


# Methods of the table of reductions: their program, and the rule of their reductions.
METHODS = {
    "ImagePiece": ("ImagePiece", "retokenize"),
    "EViT, keep .7": ("EViT .7", "prune"),
    "ToMe, r = 13": ("ToMe r=13", "bipartite"),
}


def test_reductions_are_those_of_the_files():
    programs = {row["model"]: row for row in lines_of("plain")}
    alone = {row["rule"]: row for row in lines_of("reductions")}
    assert len(ALONE) == len(METHODS)
    for row in ALONE:
        program, rule = METHODS[row["method"]]
        ratios = markdown.interval(row["times the dense"])
        assert ratios == pytest.approx(programs[program]["ratio"], abs=0.0051)
        us = 1e3 * alone[rule]["median"]
        assert float(row["one reduction, us"]) == pytest.approx(us, abs=0.51)
        copying = 1e3 * alone[rule]["floor"]
        assert float(row["copying, us"]) == pytest.approx(copying, abs=0.51)


# Columns of the table of attention, by what the file calls them.
WAYS = {
    "none": "without sizes",
    "rows": "rows as they are",
    "sizes": "keys padded to a multiple of 8",
    "sizes, queries too": "queries padded, too",
}


def test_microseconds_of_attention_are_those_of_the_file():
    last = {}
    for row in lines_of("attention"):
        median, *_ = row["us"]
        last[row["way"], row["tokens"]] = median
    assert len(ATTENTION) == len({tokens for _, tokens in last})
    for row in ATTENTION:
        for way, column in WAYS.items():
            us = last[way, int(row["tokens"])]
            assert float(row[column]) == pytest.approx(us, abs=0.51)
    wide = [f"{last['8 channels more', tokens]:.0f}" for tokens in (197, 140)]
    assert "{} us for 197 tokens, {}".format(*wide) in TEXT


def test_a_step_of_a_recovery_is_that_of_the_file():
    *_, large = json.loads((FOLDER / "recovery.json").read_text("utf-8"))
    milliseconds, *_ = large["ms"]["biases"]
    median, low, high = large["ratio"]
    assert f"{milliseconds:.1f} ms for {large['batch']} images" in TEXT
    ratio = f"{median:.2f} [{low:.2f}, {high:.2f}] times as long"
    for page in (TEXT, markdown.section("docs/tables/recover/step.md")):
        assert ratio in page


def test_microseconds_by_kernels_are_those_of_the_file():
    traced = json.loads((FOLDER / "kernels.json").read_text("utf-8"))
    names = itertools.product(("deit_ti", "deit_s"), TRACED)
    for row, name in zip(KERNELS, map(" ".join, names), strict=True):
        rest = {kind: us for kind, (us, _) in traced[name].items()}
        assert float(row["all"].replace(",", "")) == pytest.approx(
            sum(rest.values()), abs=1
        )
        for column, kind in KINDS.items():
            cell = float(row[column].replace(",", "") or 0)
            assert cell == pytest.approx(rest.pop(kind, 0), abs=1)
        other = float(row["other"].replace(",", ""))
        assert other == pytest.approx(sum(rest.values()), abs=2)


def test_the_time_of_exact_gelu_is_that_of_the_file():
    traced = json.loads((FOLDER / "kernels.json").read_text("utf-8"))
    for size in ("deit_ti", "deit_s"):
        kernels = traced[f"{size} dense"]
        gelu, _ = kernels["exact GELU"]
        total = sum(us for us, _ in kernels.values())
        assert f"{round(gelu, -1):,.0f} of {total:,.0f}" in TEXT
