import io

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from imagepiece_jax.common import statistics
from imagepiece_jax.common.files import read_json_lines
from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.evaluation import compare, result_cache
from imagepiece_jax.evaluation.result_cache import (
    MeasuredWeights,
    ResultCache,
    decode_bits,
    encode_bits,
)
from imagepiece_jax.inference.compare_outputs import measure_fidelity
from imagepiece_jax.models.config import IMAGENET_MEAN, IMAGENET_STD
from imagepiece_jax.reduction.reduction import DENSE_REDUCTION
from tests.helpers import (
    made_up_recoveries,
    small_photographs,
    tiny_paper,
    tiny_vit,
)
from tests.helpers.refused_calls import refused

pytestmark = pytest.mark.usefixtures("evaluations_compiled_once")

IMAGES = 300


def test_comparisons_equal_slow_counts():
    """Rows against dense, reductions against smaller images; binomial p; Holm."""
    rng = np.random.default_rng(0)
    shares = {"dense": 0.8, "a": 0.7, "b": 0.75, "small": 0.6}
    is_right = {
        name: rng.uniform(size=IMAGES) < share for name, share in shares.items()
    }
    metrics = {}
    for name, right in is_right.items():
        metrics[name] = {"right": encode_bits(right), "images": IMAGES}
    comparisons = compare.compare_pairs(metrics, ["small"])
    pairs = [("a", "dense"), ("a", "small"), ("b", "dense"), ("b", "small")]
    assert [*comparisons] == [*pairs, ("small", "dense")]
    p = []
    for (name, base), comparison in comparisons.items():
        hits = list(zip(is_right[name].tolist(), is_right[base].tolist(), strict=True))
        gained = sum(first > second for first, second in hits)
        lost = sum(first < second for first, second in hits)
        value, low, high = comparison["points"]
        assert value == pytest.approx(100 * (gained - lost) / IMAGES)
        assert low < value < high
        p.append(stats.binomtest(gained, gained + lost).pvalue)
        assert comparison["p"] == pytest.approx(p[-1])
    corrected = [comparison["holm"] for comparison in comparisons.values()]
    assert corrected == pytest.approx(statistics.holm_correction(p))


def test_p_is_shown_below_005():
    points = statistics.Estimate(-4.0, -6.0, -2.0)
    for p, shown in ((0.04, ", p = .040"), (0.3, ""), (4e-7, ", p < .001")):
        difference = compare.format_comparison({"points": points, "holm": p})
        assert difference == f"-4.0 [-6.0, -2.0]{shown}"
    assert compare.format_comparison(None) == ""


def test_default_rows_are_two_costs_and_the_dense_model_is_one_row():
    measured = MeasuredWeights(tiny_vit.pretrained(), tiny_paper.images())
    reductions = {row.name: row.reduction for row in compare.make_rows(measured)}
    costs = {text: measured.vit.with_reduction(text).reduction for text in reductions}
    assert reductions == costs and [*costs] == ["0.6", "0.5"]
    with refused("none is dense again"):
        compare.make_rows(measured, ["none"])


@pytest.fixture
def on_digits(tmp_path):
    cache, images = ResultCache(tmp_path / "out"), tiny_paper.images()
    return lambda weights: MeasuredWeights(weights, images, cache)


def test_a_recovered_model_is_compared_with_the_dense_one(tmp_path, on_digits):
    public = tiny_paper.pretrained(tmp_path, depth=2)
    recovered = on_digits(
        made_up_recoveries.recovered(public, reductions=("tome:r=16",))
    )
    rows = compare.make_rows(recovered, ["tome:r=16", "tome:r=1"])
    report = compare.measure_rows(recovered, rows, recovered.cache)
    dense = on_digits(public).measure_reduction(DENSE_REDUCTION)
    assert report.figures["dense"]["right"] == dense["right"]
    unrecovered = on_digits(public).measure_reduction(rows[0].reduction)
    assert report.figures["tome:r=16"]["loss"] != unrecovered["loss"]
    text = compare.format_table(report)
    assert "`tome:r=16` (recovered) |" in text
    assert text.count("(recovered)") == 1


def test_smaller_images_use_the_dense_weights(tmp_path, on_digits):
    weights = tiny_paper.pretrained(tmp_path, depth=2)
    measured = on_digits(weights)
    size = 16 - weights.model.config.patch_size
    batches = list(measured.images.read_batches())
    pixels = np.concatenate([batch["image"][0] for batch in batches])
    labels = np.concatenate([batch["label"][0] for batch in batches])
    images = normalize(pixels, IMAGENET_MEAN, IMAGENET_STD)
    resized = compare.use_smaller_images(measured, size)
    altered = result_cache.shrink_images(resized.smaller_side, images)
    channel = Image.fromarray(np.asarray(images[3, :, :, 1], np.float32))
    expected = channel.resize((size, size), Image.Resampling.BICUBIC)
    # Pillow's bicubic weights have a = -0.5, too.
    np.testing.assert_allclose(altered[3, :, :, 1], np.asarray(expected), atol=1e-5)
    smaller = weights.with_reduction(None).at_size(size)
    logits = tiny_vit.logits(smaller.model)(smaller.variables, altered)
    right = decode_bits(resized.measure_reduction(DENSE_REDUCTION)["right"], 24)
    assert right.tolist() == (logits.argmax(axis=1) == labels).tolist()


def compress_jpeg(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=75)
    return np.asarray(Image.open(file))


@pytest.mark.parametrize("classes", [0, tiny_vit.CLASSES])
def test_without_labels_outputs_are_compared(tmp_path, classes):
    """Against logits and Pillow; a second call measures the new row alone."""
    vit = tiny_vit.pretrained(num_classes=classes, depth=2)
    pixels = small_photographs.draw(30)
    folder = small_photographs.write_photographs(tmp_path / "photos", 30)
    options = {"out": tmp_path / "out", "workers": 0, "batch_size": 8}
    report = compare.compare(vit, f"{folder}", reductions=["tome:r=6"], **options)
    images = {
        "dense": pixels,
        "dense, images JPEG 75": np.stack([*map(compress_jpeg, pixels)]),
        "dense, images mirrored": pixels[:, :, ::-1],
    }

    def compute_logits(model, pixels):
        normalized = normalize(pixels, vit.config.mean, vit.config.std)
        return tiny_vit.logits(model)(vit.variables, normalized)

    outputs = {name: compute_logits(vit.model, x) for name, x in images.items()}
    order = np.random.default_rng(0).permutation(30)
    outputs["dense, images shuffled"] = outputs["dense"][order]
    reduced_vit = vit.with_reduction("tome:r=6")
    outputs["tome:r=6"] = compute_logits(reduced_vit.model, pixels)
    assert {*report.figures} == {*outputs}
    for name, row_outputs in outputs.items():
        expected = measure_fidelity(row_outputs, outputs["dense"], bool(classes))
        actual = report.figures[name]["fidelity"]
        for figure, value in expected.items():
            atol = 1 if figure == "neighbors_kept" else 1e-5  # near ties
            np.testing.assert_allclose(actual[figure], value, rtol=1e-5, atol=atol)
    assert len(read_json_lines(tmp_path / "out" / "points.jsonl")) == len(outputs)
    options |= {"reductions": ["tome:r=6", "tome:r=3"], "image_sizes": [16]}
    second = compare.compare(vit, f"{folder}", **options)
    assert second.figures["tome:r=6"] == report.figures["tome:r=6"]
    assert len(read_json_lines(tmp_path / "out" / "points.jsonl")) == len(outputs) + 2
    smaller = second.figures["image_size=16"]
    assert smaller["fidelity"]["neighbors_kept"][0] < 100


def test_accuracy_needs_classes_and_labels():
    """A projection such as CLIP's has no classes."""
    vit = tiny_vit.pretrained(num_classes=10, image_size=16, depth=1)
    options = {"limit": 12, "reductions": ["tome:r=2"], "workers": 0}
    assert compare.compare(vit, "digits", **options).comparisons
    projecting = tiny_vit.with_problem_type(vit, "projection")
    report = compare.compare(projecting, "digits", **options)
    assert "cosine" in str(report) and not report.comparisons


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
@pytest.mark.parametrize("classes", [1, 3])
def test_outputs_other_than_one_class_are_compared(tmp_path, problem_type, classes):
    """Folders' classes would not fit these outputs."""
    expected = {"difference"}
    if problem_type != "regression":
        expected = {"first_class", "neighbors_kept"} if classes > 1 else {"first_class"}
    folder = small_photographs.write_photographs(tmp_path / "photographs", 14)
    for data, side in ((f"{folder}", tiny_vit.SIDE), ("digits", 16)):
        vit = tiny_vit.pretrained(num_classes=classes, image_size=side, depth=1)
        vit = tiny_vit.with_problem_type(vit, problem_type)
        options = {"reductions": ["tome:r=2"], "workers": 0, "threads": 0}
        out = tmp_path / f"out{side}"
        report = compare.compare(vit, data, limit=14, out=out, **options)
        assert {*report.figures["tome:r=2"]["fidelity"]} == expected
        assert (out / "compare.png").exists()
