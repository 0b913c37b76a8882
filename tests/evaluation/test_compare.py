import numpy as np
import pytest
from PIL import Image

from imagepiece_jax.common import statistics
from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.evaluation import compare, result_cache
from imagepiece_jax.evaluation.result_cache import MeasuredWeights, ResultCache
from imagepiece_jax.inference import compare_outputs
from imagepiece_jax.models.config import MULTI_LABEL, REGRESSION
from imagepiece_jax.reduction.reduction import DENSE_REDUCTION
from tests.helpers import made_up_recoveries, small_photographs, tiny_paper, tiny_vit
from tests.helpers.refused_calls import refused

pytestmark = pytest.mark.usefixtures("evaluations_compiled_once")


def test_comparisons_equal_slow_counts():
    rng = np.random.default_rng(0)
    shares = {"dense": 0.8, "a": 0.7, "b": 0.75, "small": 0.6}
    is_right = {}
    metrics = {}
    for name, share in shares.items():
        is_right[name] = rng.uniform(size=300) < share
        metrics[name] = {
            "right": result_cache.encode_bits(is_right[name]),
            "images": 300,
        }
    comparisons = compare.compare_pairs(metrics, ["small"])
    pairs = [("a", "dense"), ("a", "small"), ("b", "dense"), ("b", "small")]
    assert [*comparisons] == [*pairs, ("small", "dense")]
    p = []
    for (name, base), comparison in comparisons.items():
        change = np.mean(is_right[name]) - np.mean(is_right[base])
        assert comparison["points"].value == pytest.approx(100 * change)
        p.append(statistics.mcnemar_p(is_right[name], is_right[base]))
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
    costs = {
        text: measured.pretrained.with_reduction(text).reduction for text in reductions
    }
    assert reductions == costs and [*costs] == ["0.6", "0.5"]
    with refused("none is dense again"):
        compare.make_rows(measured, ["none"])


@pytest.fixture
def on_digits(tmp_path):
    cache, images = ResultCache(tmp_path / "out"), tiny_paper.images()
    return lambda weights: MeasuredWeights(weights, images, cache)


def test_a_recovered_model_is_compared_with_the_dense_one(tmp_path, on_digits):
    public = tiny_paper.pretrained(tmp_path, depth=2)
    better = made_up_recoveries.recovered(public, reductions=("tome:r=16",))
    recovered = on_digits(better)
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
    images = normalize(pixels, weights.config.mean, weights.config.std)
    resized = compare.use_smaller_images(measured, size)
    altered = result_cache.shrink_images(resized.smaller_side, images)
    channel = Image.fromarray(np.asarray(images[3, :, :, 1], np.float32))
    expected = channel.resize((size, size), Image.Resampling.BICUBIC)
    # Pillow's bicubic weights have a = -0.5, too.
    np.testing.assert_allclose(altered[3, :, :, 1], np.asarray(expected), atol=1e-5)
    smaller = weights.with_reduction(None).at_size(size)
    logits = tiny_vit.logits(smaller.model)(smaller.variables, altered)
    right = result_cache.decode_bits(
        resized.measure_reduction(DENSE_REDUCTION)["right"], 24
    )
    assert right.tolist() == (logits.argmax(axis=1) == labels).tolist()


@pytest.mark.parametrize("classes", [0, tiny_vit.CLASSES])
def test_without_labels_outputs_are_compared(tmp_path, classes):
    vit = tiny_vit.pretrained(num_classes=classes, depth=2)
    pixels = small_photographs.draw(30)
    folder = small_photographs.write_photographs(tmp_path / "photos", 30)
    options = {"reductions": ["tome:r=6"], "workers": 0, "batch_size": 8}
    out = tmp_path / "out"
    report = compare.compare(vit, f"{folder}", image_sizes=[16], out=out, **options)

    def compute_logits(pixels, reduction=None):
        normalized = normalize(pixels, vit.config.mean, vit.config.std)
        model = vit.with_reduction(reduction).model
        return tiny_vit.logits(model)(vit.variables, normalized)

    outputs = {"dense": compute_logits(pixels)}
    outputs["tome:r=6"] = compute_logits(pixels, "tome:r=6")
    for control, change in compare_outputs.IMAGE_CONTROLS.items():
        outputs[f"dense, images {control}"] = compute_logits(change(pixels))
    order = np.random.default_rng(0).permutation(30)
    outputs["dense, images shuffled"] = outputs["dense"][order]
    assert {*report.figures} == {*outputs, "image_size=16"}
    page = (out / "compare.md").read_text()
    assert all(f"\n| `{name}` | " in page for name in report.figures)
    assert "30 of folder:" in page and "acc1" not in page
    assert ("cosine, mean" in page) == (classes == 0)
    for name, row_outputs in outputs.items():
        pair = row_outputs, outputs["dense"]
        expected = compare_outputs.measure_fidelity(*pair, bool(classes))
        actual = report.figures[name]["fidelity"]
        for figure, value in expected.items():
            atol = 1 if figure == "neighbors_kept" else 1e-5  # near ties
            np.testing.assert_allclose(actual[figure], value, rtol=1e-5, atol=atol)
    smaller = report.figures["image_size=16"]
    assert smaller["fidelity"]["neighbors_kept"][0] < 100


def test_accuracy_needs_classes_and_labels():
    """A projection such as CLIP's has no classes."""
    vit = tiny_vit.pretrained(num_classes=10, image_size=16, depth=1)
    options = {"limit": 12, "reductions": ["tome:r=2"], "workers": 0}
    assert compare.compare(vit, "digits", **options).comparisons
    projecting = tiny_vit.with_problem_type(vit, "projection")
    report = compare.compare(projecting, "digits", **options)
    assert "cosine" in str(report) and not report.comparisons


FIGURES = [(MULTI_LABEL, 3, {"first_class", "neighbors_kept"})]
FIGURES += [(MULTI_LABEL, 1, {"first_class"}), (REGRESSION, 3, {"difference"})]


@pytest.mark.parametrize("problem_type, classes, figures", FIGURES)
def test_outputs_other_than_one_class_are_compared(
    tmp_path, problem_type, classes, figures
):
    """The ten classes of digits do not fit these outputs."""
    vit = tiny_vit.pretrained(num_classes=classes, image_size=16, depth=1)
    vit = tiny_vit.with_problem_type(vit, problem_type)
    options = {"reductions": ["tome:r=2"], "workers": 0, "limit": 14}
    report = compare.compare(vit, "digits", out=tmp_path / "out", **options)
    assert {*report.figures["tome:r=2"]["fidelity"]} == figures
    assert (tmp_path / "out" / "compare.png").exists()
