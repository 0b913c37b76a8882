"""Late schedules: cells of a tiny model, the declared grid, tests by SciPy."""

import numpy as np
import pytest
import scipy.special
import scipy.stats

import imagepiece_jax
from experiments import controls, late, study
from experiments.damage import DAMAGE
from experiments.late import Cell
from imagepiece_jax.data.pictures import ArraySource
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate.cache import decode_bits
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.models.spec import create_model
from imagepiece_jax.reduction import schedules
from tests import markdown
from tests.command import call, sentence
from tests.experiments import lines
from tests.models import tiny

DECLARED = "docs/tables/late/declared.md"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny"
    imagepiece_jax.save(path, tiny.pretrained())
    shape = (60, tiny.SIDE, tiny.SIDE, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return late.Study(str(path), ArraySource(list(images)))


def logits(vit, images):
    mean = 255 * np.float32(vit.model.mean)
    std = 255 * np.float32(vit.model.std)
    normalized = (images.astype(np.float32) - mean) / std
    return tiny.logits(vit.model)(vit.variables, normalized)


def slow_kl(teacher, student):
    p = scipy.special.log_softmax(np.float64(teacher), -1)
    q = scipy.special.log_softmax(np.float64(student), -1)
    return np.sum(np.exp(p) * (p - q), axis=-1)


@controls.registered()
def test_a_cell_has_the_figures_of_every_image(whole, tmp_path):
    cell = Cell("similar keys", "dropped", "late-1", 0.75)
    far = Cell("similar keys", "dropped", "late-3", 0.3)
    study.run([late.DENSE, cell, far], tmp_path, whole.digests, whole.measure)
    found = lines.read(tmp_path)[cell.name]
    vit = whole.vit.with_reduction(cell.reduction)
    assert found["share"] == pytest.approx(0.75, abs=0.02)
    clean = np.concatenate([batch["image"][0] for batch in whole.images["clean"]])[:60]
    noisy = [
        DAMAGE[late.NOISE](image, place) for place, image in enumerate(clean[1::2])
    ]
    for name, images in {"clean": clean, "noise": np.stack(noisy)}.items():
        kl, right = study.unpacked(found[name])
        want = slow_kl(logits(whole.vit, images), logits(vit, images))
        np.testing.assert_allclose(kl, want, rtol=2e-3, atol=2e-5)
        assert len(right) == len(images) and not right.any()  # there are no labels

    # The same command goes on with what is not there.
    def refuse(cell):
        raise AssertionError

    study.run([late.DENSE, cell, far], tmp_path, whole.digests, refuse)
    other = whole.digests | {"images": "others"}
    with pytest.raises(InputError, match="other weights or images"):
        study.run([cell], tmp_path, other, refuse)

    # What cannot be reached is named.
    results = late.Results(tmp_path)
    assert far not in results.runs  # no declared cell
    stored = lines.read(tmp_path)[far.name]
    results.runs[far] = stored
    assert results.unreachable(far)
    assert "nearest cost" in stored["unreachable"]
    results.runs[Cell("similar keys", "dropped", "late-3", 0.66)] = stored
    rows = late.grid(results, "dropped", lambda cell: "")
    assert ["0.66", "similar keys", "", "", "", "", "", "not reached"] in rows


def test_the_grid_is_the_declared_one():
    cells = list(late.cells())
    assert len(cells) == len({cell.name for cell in cells}) == 217
    first = cells[1:73]
    assert {cell.schedule for cell in first} == {late.BASE, late.TESTED}
    page = " ".join((markdown.ROOT / DECLARED).read_text("utf-8").split())
    assert "216 cells and the dense model" in page
    assert all(
        schedule in page for schedule in late.SCHEDULES if schedule != "diffrate"
    )


def test_late_1_is_constant():
    for strength in np.linspace(0, 1, 101):
        late_1 = schedules.counts_of("late-1", 12, 196, strength)
        assert late_1 == schedules.counts_of("constant", 12, 196, strength / 12)


METHODS = {
    "most attended, agglomeration, class attention": ("attended", "atc", "evit"),
    "similar keys, energy": ("tome", "pitome"),
    "fusion": ("mctf",),
    "density peaks": ("dpc_knn",),
}


def test_the_least_costs_are_the_declared_ones():
    """At the strength that leaves the fewest tokens that a selector allows."""
    dense = model_macs(create_model("deit_ti"), 224)
    (table,) = (
        rows
        for rows in markdown.tables(markdown.section(DECLARED))
        if "fusion" in rows[0]
    )
    for row in table:
        counts = list(schedules.counts_of(row["schedule"], 12, 196, 1.0))
        halved = counts.copy()
        for block in range(1, 12):
            halved[block] = max(halved[block], -(-halved[block - 1] // 2))
        for column, methods in METHODS.items():
            pairs = column in ("similar keys, energy", "fusion")
            for name in methods:
                reduction = {"name": name, "counts": halved if pairs else counts}
                model = create_model("deit_ti", reduction=reduction)
                share = model_macs(model, 224) / dense
                assert share == pytest.approx(float(row[column]), abs=6e-4)


@pytest.fixture
def results(tmp_path):
    """Drawn figures: late-2 is better where tokens are merged, and else worse."""
    draw = np.random.default_rng(0)
    runs = {}
    for cell in late.cells():
        if cell is late.DENSE or (cell.schedule, cell.macs) == ("late-3", 0.66):
            runs[cell.name] = {"unreachable": "far"}
            continue
        shift = {"late-2": -0.3, late.BASE: 0.0}.get(cell.schedule, 0.5)
        if cell.fate == "dropped":
            shift = -shift
        found = {}
        for name, images in (("clean", 100), ("noise", 50)):
            kl = np.exp(draw.normal(shift - 3, 1, images))
            found[name] = study.stored(kl, draw.random(images) < 0.8)
        runs[cell.name] = found
    lines.write(tmp_path, runs)
    return late.Results(tmp_path)


def log_kl(results, cell):
    return np.log(study.unpacked(results.runs[cell]["clean"])[0])


def test_tests_follow_from_the_cells(results):
    tests = late.primary(results)
    assert [test.name[:2] for test in tests] == [f"L{n}" for n in range(1, 8)]
    for test, fate, macs in ((tests[1], "merged", 0.75), (tests[3], "dropped", 0.85)):
        changes = []
        for selector in late.SELECTORS:
            ours = log_kl(results, Cell(selector, fate, "late-2", macs))
            changes.append(
                ours - log_kl(results, Cell(selector, fate, late.BASE, macs))
            )
        want = scipy.stats.ttest_1samp(np.mean(changes, 0), 0.0)
        assert test.p == pytest.approx(want.pvalue)
        assert test.change.low == pytest.approx(want.confidence_interval(0.95).low)
    choice = late.choose(results, "merged", 0.66)
    assert (choice.schedule, choice.level) == ("late-2", ())
    assert choice.change.high < 0
    choice = late.choose(results, "dropped", 0.75)
    assert choice.schedule in ("diffrate", "proportional-1", "late-1", "late-3")
    assert len(choice.level) >= 1
    assert late.choose(results, "dropped", 0.66).schedule != "late-3"


def test_the_page_says_what_is_missing(results):
    results.runs = {
        cell: found
        for cell, found in results.runs.items()
        if cell is late.DENSE or cell.macs != 0.75
    }
    absent = [test.name for test in late.primary(results) if test.change is None]
    assert [name[:2] for name in absent] == ["L2", "L5", "L7"]
    assert late.choose(results, "merged", 0.75) is None


def test_the_command_lists_and_refuses(tmp_path):
    listed = call(late.main, "--list", "--only", "*.late-3.0.66", "--out", tmp_path)
    assert len(listed.ok().out.splitlines()) == 12
    assert sentence(call(late.main, "--only", "nothing")).startswith("--only is")
    page = call(late.main, "--tables", "--out", tmp_path).ok()
    assert page.out.strip() == str(tmp_path / "README.md")
    assert "217 cells" in (tmp_path / "README.md").read_text("utf-8")


def test_the_page_is_that_of_the_committed_cells():
    folder = markdown.ROOT / late.FOLDER
    assert (folder / "README.md").read_text("utf-8") == late.page(folder)


def test_comparison_has_the_figures_of_the_committed_cells():
    """How many times the divergence is, from the files, by other code."""

    methods = ("tome", "pitome", "attended", "mctf", "dpc_knn", "atc")

    def judged(method, fate, schedule, macs):
        if (method, fate) == ("attended", "dropped"):
            method = "evit"
        name = f"{method}.{fate}.{schedule}.{macs}"
        found = lines.committed(late.FOLDER)[name]["clean"]
        right = decode_bits(found["right"], found["images"])
        return np.log(np.maximum(found["kl"], 1e-8)), right * 1.0

    def change(method, *cell):
        fate, _, macs = cell
        kl, right = judged(method, *cell)
        base_kl, base_right = judged(method, fate, "stages-3-6-9", macs)
        return kl - base_kl, right - base_right

    def mean_change(*cell):
        return np.mean([change(method, *cell) for method in methods], axis=0)

    def factor(log_kl, digits):
        return f"{np.exp(log_kl.mean()):.{digits}f}".replace("0.", ".")

    figures = {}
    for fate in ("merged", "dropped"):
        for macs in ("0.85", "0.75", "0.66"):
            log_kl, _ = mean_change(fate, "late-2", macs)
            figures[fate, macs] = factor(log_kl, 1)
    best = {
        ("merged", "0.85"): "diffrate",
        ("dropped", "0.75"): "proportional-1",
        ("dropped", "0.66"): "proportional-1",
    }
    for (fate, macs), schedule in best.items():
        log_kl, points = mean_change(fate, schedule, macs)
        figures["best", fate, macs] = factor(log_kl[1::2], 2)
        if schedule == "diffrate":
            lost = f"{-100 * points[1::2].mean():.1f} points"
            figures["points"] = lost.replace("0.", ".")
    for fate, macs in (("merged", "0.75"), ("merged", "0.66"), ("dropped", "0.85")):
        for schedule in late.SCHEDULES[1:-1]:
            log_kl, _ = mean_change(fate, schedule, macs)
            assert log_kl[::2].mean() > 0
    shapes = []
    for method in set(methods) - {"dpc_knn"}:
        for macs in ("0.85", "0.75", "0.66"):
            log_kl, _ = change(method, "merged", "diffrate", macs)
            shapes.append(factor(log_kl, 2))
    figures["shapes"] = f"{min(shapes)} to {max(shapes)} times"
    log_kl, _ = change("mctf", "merged", "late-3", "0.85")
    figures["fusion"] = factor(log_kl, 2)
    log_kl, _ = change("attended", "dropped", "late-2", "0.75")
    figures["class attention"] = f"{np.exp(log_kl.mean()):.1f}"
    interval = scipy.stats.ttest_1samp(log_kl, 0.0).confidence_interval(0.95)
    figures["low"] = f"{interval.low:.3f}".replace("0.", ".")
    figures["high"] = f"{interval.high:.3f}".replace("0.", ".")
    assert not markdown.lacking(figures, "docs/comparison.md", "At milder costs")
