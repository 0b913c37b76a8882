"""The experiment on saliency maps: its head, its figures, its page and its picture."""

import re

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import saliency
from experiments.patch_features import FILLED
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate import compare
from tests import markdown
from tests.experiments import tiny_context
from tests.runs import ROOT

WIDTH, INNER = 8, (6, 5, 4)


def random_head(width=WIDTH):
    """Tensors of a head of small layers, with the shapes and names of the real one."""
    rng, sizes = np.random.default_rng(0), (width, *INNER)
    head = {"final_conv.weight": np.resize([1.0, -1.0], (1, INNER[-1], 1, 1))}
    head["final_conv.bias"] = np.array([0.1])
    for n in saliency.LAYERS:
        before, after = sizes[n - 1], sizes[n]
        head[f"upconv{n}.weight"] = rng.normal(size=(before, after, 4, 4)) / before
        for leaf in ("weight", "bias", "running_mean"):
            head[f"bn{n}.{leaf}"] = rng.normal(size=after)
        head[f"bn{n}.running_var"] = rng.uniform(0.5, 2, after)
        head[f"upconv{n}.bias"] = rng.normal(size=after)
    return {name: tensor.astype(np.float32) for name, tensor in head.items()}


@pytest.fixture(scope="module")
def head_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("head") / "head.npz"
    np.savez(path, **random_head())
    return path


def spread(x, kernel):
    """Transposed convolution by its definition: each pixel adds a 4 x 4 square."""
    height, width, _ = x.shape
    out = np.zeros((2 * height + 2, 2 * width + 2, kernel.shape[1]))
    for row in range(height):
        for column in range(width):
            square = np.einsum("i,iohw->hwo", x[row, column], kernel)
            out[2 * row : 2 * row + 4, 2 * column : 2 * column + 4] += square
    return out[1:-1, 1:-1]  # padding 1


def resized(x, side):
    """Bilinear, by half-pixel centers, the edge repeated. [h, w] -> [side, side]."""
    for _ in range(2):
        place = (np.arange(side) + 0.5) * len(x) / side - 0.5
        place = place.clip(0, len(x) - 1)
        low = np.minimum(place.astype(int), len(x) - 2)
        part = (place - low)[:, None]
        x = ((1 - part) * x[low] + part * x[low + 1]).T
    return x


def test_decode_is_a_slow_loop_over_pixels():
    head = random_head()
    patches = np.random.default_rng(1).normal(size=(2, 3, 3, WIDTH))
    patches = patches.astype(np.float32)
    sides = 42, 20  # the head gives 24
    ours = jax.jit(lambda x: [saliency.decode(head, x, (s, s)) for s in sides])(patches)
    for image, *found in zip(patches.astype(np.float64), *ours, strict=True):
        x = image
        for n in saliency.LAYERS:
            x = spread(x, head[f"upconv{n}.weight"]) + head[f"upconv{n}.bias"]
            norm = {leaf: head[f"bn{n}.{leaf}"] for leaf in ("weight", "bias")}
            x = (x - head[f"bn{n}.running_mean"]) / np.sqrt(
                head[f"bn{n}.running_var"] + 1e-5
            )
            x = np.maximum(x * norm["weight"] + norm["bias"], 0)
        x = x @ head["final_conv.weight"][0, :, 0, 0] + head["final_conv.bias"]
        for side, values in zip(sides, found, strict=True):
            expected = 1 / (1 + np.exp(-resized(x, side)))
            np.testing.assert_allclose(values, expected, atol=1e-5)


def test_figures_of_maps_worked_out_by_hand():
    """Two of four pixels shared; none in the dense map, once with one more of ours."""
    theirs = np.array(
        [[[0.9, 0.8, 0.7, 0.1]], [[0.1, 0.2, 0.3, 0.4]], [[0, 0, 0, 0.2]]]
    )
    ours = np.array([[[0.9, 0.6, 0.2, 0.7]], [[0.1, 0.2, 0.3, 0.4]], [[0, 0, 0, 0.6]]])
    found = saliency.figures(ours, theirs)
    assert found["iou"] == [0.5, None, None] and found["extra"] == 1
    pearson = np.corrcoef(ours[0, 0], theirs[0, 0])[0, 1]
    assert found["correlation"] == pytest.approx([pearson, 1, 1], abs=1e-5)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny_context.pretrained(tmp_path_factory.mktemp("weights"))


def context(folder, weights, head_file, **fields):
    fields = {"images": tiny_context.images(6), "decoder": str(head_file)} | fields
    return tiny_context.context(folder, weights, **fields)


@pytest.mark.slow
def test_page_and_resumption(tmp_path, weights, head_file, monkeypatch):
    """What drops has a row for each fill; a stopped run goes on where it was."""
    monkeypatch.setattr(compare, "CONTROLS", {})
    fields = {"methods": ("imagepiece",), "shares": (0.75,), "fill": ("last", "zero")}
    measured, draw = [], saliency.Maps.draw

    def counted(maps, reduction, fill, tokens=None):
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append((reduction["name"], fill))
        return draw(maps, reduction, fill)

    monkeypatch.setattr(saliency.Maps, "draw", counted)
    with_stop = context(tmp_path, weights, head_file, **fields)
    with pytest.raises(KeyboardInterrupt):
        saliency.saliency(with_stop)
    with_stop.cache.close()
    assert measured[0] == ("none", "last") and len(measured) == 3
    monkeypatch.setattr(saliency.Maps, "draw", draw)
    lines = (tmp_path / "points.jsonl").read_text()
    resumed = context(tmp_path, weights, head_file, **fields)
    saliency.saliency(resumed)
    resumed.cache.close()
    assert (tmp_path / "points.jsonl").read_text().startswith(lines)
    page = (tmp_path / "saliency.md").read_text()
    for cell in ("`imagepiece, last`", "`imagepiece, zero`", "| `tome` |"):
        assert page.count(cell) >= 1, cell
    assert "| `random` | all | does not fit this model" in page
    assert "mean of the other maps" in page and (tmp_path / "saliency.png").exists()
    nothing_left = context(tmp_path, weights, head_file, **fields)
    monkeypatch.setattr(saliency.Maps, "draw", None)
    saliency.saliency(nothing_left)
    nothing_left.cache.close()
    assert (tmp_path / "saliency.md").read_text() == page


@pytest.mark.slow
def test_dense_maps_are_their_own(tmp_path, weights, head_file):
    made = context(tmp_path, weights, head_file)
    maps = saliency.Maps(made)
    _, drawn, dropped = maps.draw({"name": "none"}, "last")
    assert drawn.shape == (6, 16, 16) and not dropped.any()
    found = saliency.figures(drawn, maps.dense)
    assert found["correlation"] == pytest.approx([1] * 6) and found["extra"] == 0
    assert set(found["iou"]) <= {1.0, None}
    half = {"name": "random", "keep_rate": 0.5, "blocks": (1,)}
    _, _, dropped = maps.draw(half, "zero")
    assert dropped == pytest.approx([0.5] * 6)
    made.cache.close()


@pytest.mark.slow
def test_picture_has_a_row_for_each_model(tmp_path, weights, head_file):
    made = context(tmp_path, weights, head_file, images=tiny_context.images(2))
    saliency.picture(made)
    made.cache.close()
    with Image.open(tmp_path / "saliency-picture.png") as picture:
        assert picture.width > 5 * 224 and picture.height > 2 * 2 * 224


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"decoder": None}, "--decoder is missing: the weights file of a head"),
        (
            {"fill": ("best",)},
            "--fill is 'best'; allowed: one or more of nearest, last",
        ),
    ],
)
def test_mistakes(tmp_path, weights, head_file, fields, message):
    made = context(tmp_path, weights, head_file, **fields)
    with pytest.raises(InputError, match=message):
        saliency.saliency(made)
    made.cache.close()


def test_a_head_of_other_features_is_a_mistake(tmp_path, head_file):
    with pytest.raises(
        InputError, match="reads features of 8 numbers, and the model's"
    ):
        saliency.read_head(head_file, 16)
    np.savez(tmp_path / "other.npz", weight=np.zeros(3, np.float32))
    with pytest.raises(InputError, match="has no tensor bn1.bias; allowed: a head"):
        saliency.read_head(tmp_path / "other.npz", 8)


@pytest.mark.parametrize(
    "change",
    [
        {"upconv2.weight": np.zeros((6, 5, 3, 3))},
        {"upconv4.weight": np.zeros((4, 4, 4, 4))},
        {"final_conv.weight": np.zeros((2, 4, 1, 1))},
        {"bn3.running_mean": np.zeros(5)},
    ],
)
def test_a_head_of_another_form_is_a_mistake(tmp_path, change):
    np.savez(tmp_path / "other.npz", **random_head() | change)
    (name,), (tensor,) = change, change.values()
    shape = re.escape(str(list(tensor.shape)))
    with pytest.raises(InputError, match=f"has tensor {name} {shape}; allowed: a"):
        saliency.read_head(tmp_path / "other.npz", WIDTH)


def docs(name):
    return (ROOT / "docs" / name).read_text("utf-8")


def test_sentences_of_the_page_follow_from_the_table():
    measured = markdown.tables(docs("tables/saliency.md"))[0]
    rows = {(row["method"].strip("`"), row["share"]): row for row in measured}
    said = " ".join(docs("features.md").split())
    shares = ("0.9", "0.75", "0.6", "0.5", "0.4")

    def changes(method, base):
        return [markdown.interval(rows[method, s][f"IoU, to {base}"]) for s in shares]

    control = "imagepiece {} (control)"
    drop, random, tome = (
        changes(control.format(kind), "ImagePiece")
        for kind in ("drop", "random", "tome")
    )
    assert all(high < 0 for _, _, high in (*drop, *random))
    assert [low > 0 for _, low, _ in tome] == [False] + [True] * 4
    assert tome[0][:2] == (0.004, 0)
    for each, words in (
        (drop, "{} to {} above that of its control that drops"),
        (random, "{} to {} above that of random pairs"),
        (tome, "of all tokens is {} to {} above ImagePiece"),
    ):
        sizes = sorted(abs(value) for value, _, _ in each)
        assert words.format(f"{sizes[0]:.3f}", f"{sizes[-1]:.3f}") in said
    sizes = sorted(abs(value) for value, _, _ in drop)
    higher = f"is {sizes[0]:.3f} to {sizes[-1]:.3f} higher"
    assert higher in " ".join(docs("imagepiece.md").split())
    iou = {key: markdown.interval(row["IoU"])[0] for key, row in rows.items()}
    for share in ("0.75", "0.6"):
        of_share = {method: v for (method, s), v in iou.items() if s == share}
        assert max(of_share, key=of_share.get) == "tome"
    matched = control.format("tome")
    assert f"ToMe has {iou['tome', '0.4']:.3f}" in said
    assert f"in small and early steps, {iou[matched, '0.4']:.3f}" in said
    evit = changes("evit", "random tokens")
    assert [low > 0 for _, low, _ in evit] == [True] * 3 + [False] * 2
    assert [high < 0 for _, _, high in evit] == [False] * 3 + [True] * 2
    assert f"has an IoU of {iou['mean of the other maps', '']:.3f}" in said


def test_the_nearest_kept_token_is_the_best_fill():
    """By more than the intervals; the page has the figures of the table."""
    measured = markdown.tables(docs("tables/saliency.md"))[1]
    rows = {(row["method"], row["dropped patches get"]): row for row in measured}
    shown = markdown.tables(docs("features.md").partition("by the IoU")[2])[0]
    assert [row.pop("setting") for row in shown] == ["EViT", "random tokens"]
    for method, cells in zip(("`evit`", "`random`"), shown, strict=True):
        iou = {fill: rows[method, FILLED[fill]]["IoU"] for fill in cells}
        assert cells == iou
        _, low, _ = markdown.interval(cells.pop("nearest"))
        assert low > max(markdown.interval(cell)[2] for cell in cells.values())
