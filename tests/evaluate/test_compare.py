"""A comparison: what is matched, paired and corrected, against slow counts."""

import base64
import contextlib
import itertools
import json
import re
import types

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from imagepiece_jax.benchmark.workloads import Clock
from imagepiece_jax.common.checks import as_tuple
from imagepiece_jax.common.timer import Rules
from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate import compare, compare_tables, statistics
from imagepiece_jax.evaluate.cache import (
    MeasuredWeights,
    ResultCache,
    Split,
    decode_bits,
    encode_bits,
    plan_facts,
)
from imagepiece_jax.evaluate.compare import RECOMMENDED
from imagepiece_jax.models import resize_positions, timm_tensors
from imagepiece_jax.models.spec import create_model
from imagepiece_jax.models.variables import variable_shapes
from imagepiece_jax.models.vit import MEAN, STD
from imagepiece_jax.reduction.methods import METHODS
from imagepiece_jax.reduction.reduction import DENSE, Reduction
from tests.experiments import tiny_paper
from tests.models import recoveries, tiny
from tests.models.test_learned_contract import LEARNED
from tests.refused import refused

pytestmark = pytest.mark.usefixtures("evaluations_compiled_once")

IMAGES = 300
SHARES = (0.75, 0.5)


class Guessing:
    """MeasuredWeights of a DeiT-Ti that errs by chance: the less it computes."""

    setting = {"data": "csv:labels.csv", "images": IMAGES, "image_size": [224, 224]}
    images = Split(setting, list)
    clock = Clock(8, Rules(2, 1, 0.0))
    cache = types.SimpleNamespace(versions={})

    def __init__(self):
        self.known = set()
        self.trials = []
        size = {"name": "deit_ti", "image_size": 224, "num_classes": 1000}
        fields = size | {"stem": "patch", "depth": 12}
        self.vit = tiny.loaded("tiny.pth", **fields)
        vars(self.vit)["digest"] = "0"
        self.dense = self.vit.gmacs

    def has_evaluated(self, reduction):
        return str(reduction) in self.known

    def evaluate(self, reduction):
        self.known.add(str(reduction))
        figures = plan_facts(self.vit.model_with(reduction), 224)
        draw = np.random.default_rng(sum(map(ord, reduction.name)))
        right = draw.uniform(size=IMAGES) < (figures["gmacs"] / self.dense) ** 0.5
        figures |= {"acc5": 99.0, "loss": 1.0, "images": IMAGES}
        return figures | {"right": encode_bits(right)}

    def speed(self, reduction):
        """Time falls more slowly than MACs."""
        self.trials.append(reduction)
        ratio = (self.dense / self.vit.gmacs_with(reduction)) ** 0.7
        return {"ratio": ratio, "ratio_min": 0.9 * ratio, "ratio_max": 1.1 * ratio}


@pytest.fixture(scope="module")
def context():
    return Guessing()


@pytest.fixture(scope="module")
def report(context, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    compare_tables.write(folder, compare.compare(context, SHARES))
    return json.loads((folder / "compare.json").read_text())


def test_every_method_is_there_or_says_why_not(report):
    """At each share once; what has parameters of its own needs training."""
    found = []
    untrained = set()
    for line in report["settings"] + report["left_out"]:
        if line["share"]:
            found.append((line["method"], line["share"]))
        else:
            assert line["reason"] == "needs training"
            untrained.add(line["method"])
    learned = set(LEARNED) & set(METHODS)
    assert untrained == learned
    assert len(found) == len(set(found))
    there = set(METHODS) - {"none"} - learned
    assert set(found) == set(itertools.product(there, SHARES))
    assert "acc1" not in json.dumps(report["left_out"])


def test_settings_have_the_cost_that_their_share_asks_for(context, report):
    """Within 2 % of the dense model; all other fields are the defaults."""
    for line in report["settings"]:
        asked = {"name": line["method"], **line["setting"]}
        assert line["setting"] == line["share"]
        assert line["reached"] == line["gmacs"] / context.dense
        assert abs(line["reached"] - line["share"]) <= 0.02
        plan = context.vit.model_with(asked).plan
        assert line["tokens_per_block"] == tokens_by_block(plan)
        again = of_json(line["reduction"])
        assert context.vit.model_with(again).plan == plan
        assert "macs" not in again
    for line in report["left_out"]:
        assert not line["share"] or "nearest cost" in line["reason"]


def tokens_by_block(plan):
    """[attention's tokens, the MLP's tokens] of each block."""
    return [[layer.attn_tokens, layer.mlp_tokens] for layer in plan]


def of_json(reduction):
    """The fields of a reduction as they were: JSON has lists where they are tuples."""
    return {name: as_tuple(value) for name, value in reduction.items()}


def bits(line):
    """Which images were right, one by one."""
    data = base64.b64decode(line["right"])
    return [data[i // 8] >> (7 - i % 8) & 1 for i in range(line["images"])]


def test_comparisons_are_those_of_a_slow_count(report):
    """Each pair once: to dense, ToMe and random tokens; exact binomial p; Holm."""
    at = {}
    for line in report["settings"]:
        at[line["method"], line["share"]] = bits(line)
    for share in SHARES:
        at["dense", share] = bits(report["dense"])
    pairs = []
    p = []
    for line in report["comparisons"]:
        one = at[line["method"], line["share"]]
        other = at[line["to"], line["share"]]
        gained = sum(a > b for a, b in zip(one, other, strict=True))
        lost = sum(a < b for a, b in zip(one, other, strict=True))
        assert (line["gained"], line["lost"]) == (gained, lost)
        value, low, high = line["points"]
        assert value == pytest.approx(100 * (gained - lost) / IMAGES)
        assert low < value < high
        p.append(stats.binomtest(gained, gained + lost).pvalue)
        assert line["p"] == pytest.approx(p[-1])
        pairs.append((line["share"], frozenset((line["method"], line["to"]))))
    assert len(set(pairs)) == len(pairs)
    expected = set()
    for method, share in at:
        for to in {"dense", "tome", "random"} - {method}:
            expected.add((share, frozenset((method, to))))
    assert set(pairs) == expected
    corrected = [line["holm"] for line in report["comparisons"]]
    assert corrected == pytest.approx(statistics.holm(p))


def test_what_one_number_stands_for_is_measured(context, report):
    """At every share with the tokens that `reduction=0.5` gives."""
    at = {s["share"]: s for s in report["settings"] if s["method"] == RECOMMENDED}
    assert [*at] == [*SHARES]
    for share, line in at.items():
        plan = context.vit.model_with(share).plan
        assert line["tokens_per_block"] == tokens_by_block(plan)
    assert RECOMMENDED not in compare.with_references(["evit"])


def test_nothing_is_measured_twice_and_the_rest_is_counted(capsys):
    made = Guessing()
    made.evaluate(DENSE)
    compare.compare(made, SHARES, ["evit"])
    count, *lines = capsys.readouterr().err.split("\n")
    assert count == (
        "7 settings, 1 of them measured before; each of the other 6 compiles a program"
    )
    assert "".join(lines).startswith("1 of 6: 2 of 6, about 1 min left: 3 of 6, ab")
    compare.compare(made, SHARES, ["evit"])
    assert not capsys.readouterr().err
    with refused("shares", [0.01]):
        compare.compare(Guessing(), (0.01,), ["evit"])


LINE = '{"setting": {"kind": "speed"}, "result": {"ratio": 1.2}}\n'
OTHERS = [
    ({"compare.json": "mine"}, "/compare.json is not JSON"),
    ({"compare.json": "{}"}, " holds compare.json"),
    ({"points.jsonl": "", "compare.png": "mine"}, " holds compare.png"),
    ({"points.jsonl": LINE, "notes.txt": "mine"}, " holds notes.txt"),
    ({"points.jsonl": "mine\n"}, "/points.jsonl.*not a measured result"),
]


@pytest.mark.parametrize("texts, said", OTHERS)
def test_folders_of_something_else_are_refused(tmp_path, texts, said):
    for file, text in texts.items():
        (tmp_path / file).write_text(text)
    with pytest.raises(InputError, match=f"{re.escape(str(tmp_path))}{said}"):
        compare_tables.check_folder(tmp_path)


def test_a_folder_of_a_comparison_is_taken_again(report, tmp_path):
    """Whole, or with what a killed command left of it."""
    compare_tables.check_folder(tmp_path / "new")
    compare_tables.check_folder(tmp_path)
    (tmp_path / "points.jsonl").touch()
    compare_tables.check_folder(tmp_path)
    (tmp_path / "points.jsonl").write_text(f"{LINE}{LINE[:9]}")
    (tmp_path / ".0123.tmp").touch()
    compare_tables.check_folder(tmp_path)
    (tmp_path / "compare.md").touch()
    compare_tables.check_folder(tmp_path)
    (tmp_path / "points.jsonl").unlink()
    (tmp_path / "compare.json").write_text(json.dumps(report))
    compare_tables.check_folder(tmp_path)


def test_by_time_settings_are_the_nearest_that_were_timed(tmp_path):
    made = Guessing()
    compared = compare.compare(made, SHARES, ["evit"], metric="ms")
    page = compare_tables.write(tmp_path, compared)
    assert len(made.trials) <= compare.MAX_TRIALS * 3 * len(SHARES)
    found = json.loads((tmp_path / "compare.json").read_text())
    reached = {(line["method"], line["share"]) for line in found["settings"]}
    assert reached == set(itertools.product(("evit", "tome", "random"), SHARES))
    for line in found["settings"]:
        assert line["reached"] == pytest.approx(1 / line["speed"]["ratio"])
        assert line["reached"] == pytest.approx(line["share"], rel=0.03)
        # MACs fall further than time, so the nearest by MACs would have been too slow.
        assert line["gmacs"] / made.dense < 0.97 * line["share"]
        # What one types to have it is its MACs, not its time.
        assert line["setting"]["macs"] == round(line["gmacs"] / made.dense, 4)
        typed = {"name": line["method"], **line["setting"]}
        again = of_json(line["reduction"])
        assert made.vit.model_with(typed).plan == made.vit.model_with(again).plan
    assert found["timing"]["batch_size"] == 8
    assert page == (tmp_path / "compare.md").read_text()
    line = next(s for s in found["settings"] if s["method"] == "evit")
    low = line["reached"] / 1.1
    high = line["reached"] / 0.9
    assert f"| {line['reached']:.3f} ({low:.3f} to {high:.3f}) |" in page
    assert "share of the dense time" in page
    floor = found["settings"][0] | {"speed": None}
    text = compare_tables.settings_table(found | {"settings": [floor]})
    assert f"| {floor['reached']:.3f} (by MACs) |" in text


def matched(checkpoint, method, shares):
    """(settings, what is left out) of one of the methods that are compared."""
    entries, absent = compare.match(checkpoint, shares, [method])
    own = [entry for entry in entries if entry.method == method]
    left_out = [line for line in absent if line["method"] == method]
    return own, left_out


def test_a_run_keeps_its_own_fields_and_parameters(tmp_path):
    """DynamicViT's weights: its blocks are not the defaults, and nothing is missing."""
    own = "dynamicvit:keep_rate=0.7:blocks=(1,2)"
    model = create_model(**tiny_paper.FIELDS, reduction=own)
    variables = tiny.fill(variable_shapes(model, 16))
    made = Guessing()
    made.vit = tiny.loaded(tmp_path, own, variables, **tiny_paper.FIELDS)
    (one, other), _ = matched(made, "dynamicvit", (0.65, 0.9))
    assert one.reduction.method.blocks == (1, 2)
    assert one.reached < other.reached
    assert set(one.setting) == {"macs", "blocks"}
    # Selectors at blocks 3, 6 and 9 do not fit four blocks, SPViT's are not there.
    made.vit = made.vit.with_reduction(DENSE)
    _, [absent] = matched(made, "dynamicvit", SHARES)
    assert absent["reason"].startswith("reduction.blocks has 9; ")
    _, [absent] = matched(made, "dtem", (0.9,))
    assert absent == {"method": "dtem", "share": None, "reason": "needs training"}


def line(method, share, value, **more):
    figures = {"gmacs": share, "tokens": 9, "reached": share, "images": 100}
    figures["acc5"] = 99.0
    figures |= {"method": method, "share": share, "setting": {"r": 3}, "speed": None}
    figures |= {"reduction": {"name": method}}
    return figures | {"acc1": [value, value - 5, value + 5]} | more


def to(method, other, points, holm, share=0.5):
    found = {"method": method, "to": other, "share": share, "holm": holm}
    return found | {"points": [points, points - 2, points + 2], "p": holm / 9}


MADE_UP = {
    "weights": "tiny.pth",
    "trained_as": "none",
    "images": {"data": "csv:photos", "image_size": [224, 224], "crop": 0.9},
    "num_classes": 1000,
    "metric": "gmacs",
    "shares": [0.9, 0.5],
    "timing": None,
    "left_out": [
        {"method": "clever", "share": 0.9, "reason": "too far"},
        {"method": "spvit", "share": None, "reason": "needs training"},
    ],
    "dense": line("dense", 1.0, 80.0),
    "settings": [
        line("random", 0.5, 60.0),
        line("tome", 0.5, 70.0, reached=0.48),
        line("clever", 0.5, 76.0),
        line("tome", 0.9, 79.0),
    ],
    "comparisons": [
        to("random", "dense", -20.0, 0.001),
        to("random", "tome", -10.0, 0.01),
        to("tome", "dense", -10.0, 0.01),
        to("clever", "dense", -4.0, 0.3),
        to("clever", "tome", 6.0, 0.04),
        to("clever", "random", 16.0, 0.001),
        to("tome", "dense", -1.0, 0.9, 0.9),
    ],
}


def test_the_tables_have_the_figures():
    page = compare_tables.page(MADE_UP, "plot.png")
    rows = [row for row in page.splitlines() if row.startswith("| `")]
    assert rows[1:4] == [
        "| `clever` |  | 76.0 (-4.0) |",
        "| `tome` | 79.0 (-1.0) | 70.0 (-10.0) |",
        "| `random` |  | 60.0 (-20.0) |",
    ]
    # p is shown where it is below .05.
    assert "76.0 [71.0, 81.0] | -4.0 [-6.0, -2.0] | +6.0 [+4.0, +8.0], p = .040" in page
    # Turned: ToMe has ten more than random tokens.
    assert "p = .010 |  | +10.0 [+8.0, +12.0], p = .010 |  |" in page
    assert rows[-2:] == [
        "| `clever` | 0.9 | too far |",
        "| `spvit` | all | needs training |",
    ]
    assert "| resize 248 bicubic, crop 224 |" in page
    found = [compare_tables.p_value(p) for p in (1.0, 0.0204, 4e-7)]
    assert found == ["p = 1.000", "p = .020", "p < .001"]


def measured(points, **more):
    """`MADE_UP` with these (method, share, points to dense, half an interval)."""
    lines = []
    changes = []
    for method, share, value, half in points:
        setting = share
        if method == compare.SMALLER:
            setting = {"image_size": 192}
        name = method.split()[0]
        own = {"setting": setting, "reduction": {"name": name}, "speed": None}
        lines.append(line(method, share, 80 + value, **own))
        change = to(method, "dense", value, 0.5, share)
        changes.append(change | {"points": [value, value - half, value + half]})
    return MADE_UP | {"settings": lines, "comparisons": changes} | more


ATTENDED = 'reduction={"name": "attended", "macs": 0.6}'


@pytest.mark.parametrize(
    "points, taken",
    [
        # The cheapest whose interval lies above -1.5, not the most accurate of all.
        ([("tome", 0.9, 0, 1), ("tome", 0.5, -2, 1)], '{"name": "tome", "macs": 0.9}'),
        ([("tome", 0.9, 0, 1), ("evit", 0.6, -0.4, 1)], '{"name": "evit", "macs": 0.6'),
        # Of those at one share the recommended one, or else the most accurate.
        ([("tome", 0.6, 0, 1), (RECOMMENDED, 0.6, -0.4, 1)], ATTENDED),
        ([("tome", 0.6, 0, 1), (RECOMMENDED, 0.6, -0.6, 1)], '"tome", "macs": 0.6'),
        ([("tome", 0.6, 0, 1), ("evit", 0.6, 0.1, 1)], '"evit", "macs": 0.6'),
        ([("smaller images", 0.6, 0, 1)], "the dense model with image_size=192"),
    ],
)
def test_the_last_line_says_what_to_take(points, taken):
    *_, last = compare_tables.page(measured(points), "p.png").splitlines()
    assert last.startswith("take ")
    assert taken in last
    assert "-1.5" in last


def test_a_recovered_model_is_compared_with_the_dense_one(tmp_path, on_digits):
    """The one that it was made from; rows say which forms were recovered."""
    public = tiny_paper.pretrained(tmp_path, depth=2)
    reduction = "tome:r=16"
    made = on_digits(recoveries.recovered(public, costs=(reduction,)))
    reductions = [Reduction.read(reduction), Reduction.read("tome:r=1")]
    report = compare.sweep(made, reductions)
    assert report["dense"]["right"] == on_digits(public).evaluate(DENSE)["right"]
    plain = on_digits(public).evaluate(reductions[0])
    assert report["settings"][0]["loss"] != plain["loss"]
    assert [each["recovered"] for each in report["settings"]] == [True, False]
    text = compare_tables.page(report, "p.png")
    assert "`tome r=16` (recovered) |" in text
    assert "points to dense," in text


@pytest.fixture
def on_digits(tmp_path):
    """Makes MeasuredWeights of tiny weights on digits."""
    with contextlib.closing(ResultCache(tmp_path / "out")) as cache:
        images = tiny_paper.images()
        yield lambda weights: MeasuredWeights(weights, images, cache)


@pytest.mark.slow
def test_a_stopped_comparison_resumes(tmp_path, capsys, monkeypatch):
    """At its third setting; random tokens, dropped at blocks 3, 6 and 9, do not fit."""
    weights = tiny_paper.pretrained(tmp_path)
    images = tiny_paper.images()

    def compared():
        cache = ResultCache(tmp_path)
        with contextlib.closing(cache):
            made = MeasuredWeights(weights, images, cache)
            return compare.compare(made, (0.8, 0.6), ["random"])

    measured = []
    result = ResultCache.result

    def measure(self, setting, compute, said):
        measured.append(setting["reduction"]["name"])
        if measured == ["none", "tome", "tome"]:
            raise KeyboardInterrupt
        return result(self, setting, compute, said)

    monkeypatch.setattr(ResultCache, "result", measure)
    with pytest.raises(KeyboardInterrupt):
        compared()
    capsys.readouterr()
    report = compared()
    assert capsys.readouterr().err.count("measuring") == 1
    settings = [(line["method"], line["share"]) for line in report["settings"]]
    assert settings == [("tome", 0.8), ("tome", 0.6)]
    (absent,) = report["left_out"]
    assert absent["method"] == "random"
    assert "blocks has 9; allowed" in absent["reason"]
    assert report["dense"]["images"] == 24
    right = decode_bits(report["dense"]["right"], 24)
    assert report["dense"]["acc1"][0] == 100 * right.mean()


def test_smaller_images_are_seen_by_the_dense_weights(tmp_path, on_digits):
    """Of five, four, .. patches a side."""
    weights = tiny_paper.pretrained(tmp_path, depth=2)
    measured = on_digits(weights)
    smaller = compare.smaller_sizes(weights)
    patch = weights.model.patch_size
    sizes = [entry.setting["image_size"] for entry in smaller]
    assert sizes == [*range(16 - patch, patch, -patch)]
    costs = [entry.reached for entry in smaller]
    assert [1, *costs] == sorted({1, *costs}, reverse=True)
    batches = list(measured.images.batches())
    pixels = np.concatenate([batch["image"][0] for batch in batches])
    labels = np.concatenate([batch["label"][0] for batch in batches])
    images = normalize(pixels, MEAN, STD)
    size = (sizes[0], sizes[0])
    made = compare.made_smaller(measured.images, size).alter(images, None, None)
    channel = np.asarray(images[3, :, :, 1], np.float32)
    want = Image.fromarray(channel).resize(size, Image.Resampling.BICUBIC)
    # Pillow's bicubic weights are those of a = -0.5, too.
    np.testing.assert_allclose(made[3, :, :, 1], np.asarray(want), atol=1e-5)
    model = create_model(**tiny_paper.FIELDS | {"image_size": size, "depth": 2})
    tensors = timm_tensors.to_timm(weights.variables)
    params = timm_tensors.from_timm(
        resize_positions.fit(tensors, model, size), variable_shapes(model, size)
    )["params"]
    logits = tiny.logits(model)({"params": params}, made)
    right = logits.argmax(axis=1) == labels
    resized = compare.on_smaller_images(measured, smaller[0])
    assert resized.vit.gmacs / weights.gmacs == pytest.approx(smaller[0].reached)
    found = resized.evaluate(DENSE)["right"]
    assert decode_bits(found, 24).tolist() == right.tolist()


def test_a_reduction_is_between_two_sizes_of_its_cost(context, monkeypatch):
    """DeiT-Ti at half the cost: 160 pixels have .48 of it, 176 have .59 (README)."""
    monkeypatch.setattr(compare, "on_smaller_images", lambda *_: None)
    measured = MeasuredWeights(context.vit, context.images, cache=None)
    found = compare.sizes_around(measured, [0.5])
    sizes = {entry.setting["image_size"]: round(entry.reached, 2) for entry, _ in found}
    assert sizes == {176: 0.59, 160: 0.48}
    assert [entry.method for entry, _ in found] == [
        "image_size=176",
        "image_size=160",
    ]
    (exact,) = [each for each, _ in found if each.setting["image_size"] == 160]

    def around(*costs):
        found = compare.sizes_around(measured, costs)
        return [entry.setting["image_size"] for entry, _ in found]

    assert around(exact.reached) == [176, 160]
    assert around(0.5, 0.7) == [192, 176, 160]
    assert around(0.99) == [208]  # above it are the dense model's own images
    assert around(0.001) == [32]


@pytest.mark.parametrize("prop_attn", [None, True, False])
def test_the_recommended_method_is_compared_as_it_is_asked_for(prop_attn):
    asked = Reduction.read(0.5, prop_attn)
    vit = Guessing().vit
    (found,) = compare.with_recommended(vit, [asked])
    assert (found.name, found.method.macs) == (RECOMMENDED, 0.5)
    wanted = vit.reduction_at_cost(asked)
    assert vit.reduction_at_cost(found) == wanted
    assert wanted.all_fields["prop_attn"] is (prop_attn is not False)
