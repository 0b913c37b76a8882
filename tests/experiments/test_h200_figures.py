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
HALVES, FORMS, JOINED, SMALLER, SETTINGS, *OTHERS = markdown.tables(PAGE)
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


SIZES = {case.title: size for size, case in gpu_speed.CASES.items()}
BATCHES = {"batches of 256": 256, "of 8": 8, "of 1": 1}


def test_halves_are_those_of_the_files():
    """Of the last run in the forms that a GPU takes: fast reductions, if it had any."""
    timed = gpu_speed.groups(lines_of("forms") + lines_of("large")).values()
    for row in HALVES:
        for column, batch in BATCHES.items():
            found = []
            for group in timed:
                reduced = reduced_of(group, SIZES[row["model"]], batch)
                found += [(each, gpu_speed.dense_of(each, group)) for each in reduced]
            if not row[column]:
                assert not found
                continue
            fast = [pair for pair in found if pair[0]["reductions"] == "fast"]
            half, dense = (fast or found)[-1]
            assert row[column] == gpu_speed.cell(half["ratio"])
            if batch == 256:
                rates = (f"{each['rate'][0]:,.0f}" for each in (dense, half))
                assert tuple(rates) == (row["dense, images/s"], row["half, images/s"])


def reduced_of(group, size, batch):
    """Lines of a model in its recommended form at half of its MACs, on a GPU."""
    wanted = {"size": size, "batch": batch}
    found = [row for row in group if wanted.items() <= row.items()]
    halves = [row for row in found if row["model"] in gpu_speed.HALVES[:2]]
    in_form = [row for row in halves if row["gelu"] != "exact"]
    return [row for row in in_form if row["sizes"] != "bias" or "dino" in size]


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
    for line in ours():
        key = tuple(line[name] for name in names)
        found.setdefault(key, gpu_speed.cell(line["ratio"]))
    for row in FORMS:
        size = SIZES[row["model"]]
        for column, form in FORMS_OF.items():
            assert row[column] == found.get((size, row["reduction"], *form), "")


def test_stems_are_those_of_the_file():
    """Those of the table are of the last run; others have one."""
    *_, last = [line["run"] for line in ours() if line["joined"] == 16]
    joined = {}
    others = []
    for line in ours():
        name = line["model"]
        if line["run"] == last:
            joined[name, line["joined"]] = gpu_speed.cell(line["ratio"])
        elif name.startswith("ImagePiece"):
            if line["stem"] == "patch" or line["dtype"] == "float32":
                others.append(gpu_speed.cell(line["ratio"]))
    assert len(JOINED) == 3
    for row in JOINED:
        for kind in ("ImagePiece", "dense"):
            found = joined[f"{kind} with conv stem", int(row["pixels joined"])]
            assert row[f"{kind}, conv stem"] == found
    assert len(others) == 4
    for figure in others:
        assert figure in TEXT


def test_smaller_images_are_timed_beside_reductions():
    *_, last = [line["run"] for line in ours() if line["image_size"] == 160]
    timed = {line["model"]: line for line in lines_of("forms") if line["run"] == last}
    assert len(SMALLER) == len(timed) - 1  # the dense model is 1
    for row in SMALLER:
        line = timed[row["setting"]]
        assert row["times the dense"] == gpu_speed.cell(line["ratio"])
        assert row["by MACs"] == f"{line['macs']:.2f}"


def test_timm_and_three_blocks_are_those_of_the_files():
    rows = lines_of("large") + lines_of("forms")
    (beside,) = markdown.tables(gpu_speed.beside_timm(rows))
    for row in beside:
        if row["batch"] == "256" and row["model"] in ("DeiT-S", "ViT-L/16"):
            assert row["times timm"] in TEXT
    for row in rows:
        if row["model"] == gpu_speed.TOME_STAGES:
            assert gpu_speed.cell(row["ratio"]) in TEXT


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


def ours():
    """Lines of DeiT's programs, without timm's."""
    lines = lines_of("forms")
    return [line for line in lines if line["library"] == gpu_speed.OURS]


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
