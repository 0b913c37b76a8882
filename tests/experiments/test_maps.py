"""Saliency maps: the head, figures by hand, and sentences beside their table."""

import jax
import numpy as np
import pytest

from experiments import dense_head as head
from experiments import maps
from imagepiece_jax.errors import InputError
from tests import markdown

WIDTH = 8
INNER = (6, 5, 4)


def random_head(width=WIDTH):
    """Tensors of a head of small layers, with the shapes and names of the real one."""
    rng = np.random.default_rng(0)
    sizes = (width, *INNER)
    tensors = {"final_conv.weight": np.resize([1.0, -1.0], (1, INNER[-1], 1, 1))}
    tensors["final_conv.bias"] = np.array([0.1])
    for n in head.LAYERS:
        before = sizes[n - 1]
        after = sizes[n]
        tensors[f"upconv{n}.weight"] = rng.normal(size=(before, after, 4, 4)) / before
        for leaf in ("weight", "bias", "running_mean"):
            tensors[f"bn{n}.{leaf}"] = rng.normal(size=after)
        tensors[f"bn{n}.running_var"] = rng.uniform(0.5, 2, after)
        tensors[f"upconv{n}.bias"] = rng.normal(size=after)
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


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
    tensors = random_head()
    patches = np.random.default_rng(1).normal(size=(2, 3, 3, WIDTH))
    patches = patches.astype(np.float32)
    sides = 42, 20  # the head gives 24
    ours = jax.jit(lambda x: [head.decode(tensors, x, (s, s)) for s in sides])(patches)
    for image, *found in zip(patches.astype(np.float64), *ours, strict=True):
        x = image
        for n in head.LAYERS:
            x = spread(x, tensors[f"upconv{n}.weight"]) + tensors[f"upconv{n}.bias"]
            norm = {leaf: tensors[f"bn{n}.{leaf}"] for leaf in ("weight", "bias")}
            x = (x - tensors[f"bn{n}.running_mean"]) / np.sqrt(
                tensors[f"bn{n}.running_var"] + 1e-5
            )
            x = np.maximum(x * norm["weight"] + norm["bias"], 0)
        x = x @ tensors["final_conv.weight"][0, :, 0, 0] + tensors["final_conv.bias"]
        for side, values in zip(sides, found, strict=True):
            expected = 1 / (1 + np.exp(-resized(x, side)))
            np.testing.assert_allclose(values, expected, atol=1e-5)


def test_figures_of_maps_worked_out_by_hand():
    """Two of four pixels shared; none in the dense map, once with one more of ours."""
    theirs = np.array(
        [[[0.9, 0.8, 0.7, 0.1]], [[0.1, 0.2, 0.3, 0.4]], [[0, 0, 0, 0.2]]]
    )
    ours = np.array([[[0.9, 0.6, 0.2, 0.7]], [[0.1, 0.2, 0.3, 0.4]], [[0, 0, 0, 0.6]]])
    found = maps.figures(ours, theirs)
    assert found["iou"] == [0.5, None, None]
    assert found["extra"] == 1
    pearson = np.corrcoef(ours[0, 0], theirs[0, 0])[0, 1]
    assert found["correlation"] == pytest.approx([pearson, 1, 1], abs=1e-5)


@pytest.mark.parametrize(
    "width, change, name",
    [
        (16, {}, "upconv1.weight"),
        (WIDTH, {"upconv2.weight": np.zeros((6, 5, 3, 3))}, "upconv2.weight"),
        (WIDTH, {"upconv4.weight": np.zeros((4, 4, 4, 4))}, "upconv4.weight"),
        (WIDTH, {"final_conv.weight": np.zeros((2, 4, 1, 1))}, "final_conv.weight"),
        (WIDTH, {"bn3.running_mean": np.zeros(5)}, "bn3.running_mean"),
        (WIDTH, {"bn1.bias": None}, "bn1.bias"),
    ],
)
def test_another_head_is_refused(tmp_path, width, change, name):
    tensors = {k: v for k, v in (random_head() | change).items() if v is not None}
    np.savez(tmp_path / "other.npz", **tensors)
    with pytest.raises(InputError, match=f"tensor {name}") as error:
        head.read_head(tmp_path / "other.npz", width)
    shape = [*tensors[name].shape] if name in tensors else []
    assert error.value.value == shape
    assert f"{width} numbers" in error.value.allowed


SHARES = ("0.9", "0.75", "0.6", "0.5", "0.4")


def test_figures_of_the_page_are_those_of_the_table():
    """docs/tables/saliency.md by (method, share), beside features and imagepiece."""
    page = "docs/tables/saliency.md"
    by_share = markdown.tables(markdown.section(page))[0]
    rows = {(row["method"].strip("`"), row["share"]): row for row in by_share}

    def changes(kind):
        found = [rows[f"imagepiece {kind} (control)", share] for share in SHARES]
        return [abs(markdown.interval(row["IoU, to ImagePiece"])[0]) for row in found]

    spans = {kind: changes(kind) for kind in ("drop", "random", "tome")}
    spans = {k: f"{min(v):.3f} to {max(v):.3f}" for k, v in spans.items()}
    iou = {key: row["IoU"].split(" [")[0] for key, row in rows.items()}
    figures = {"tome at .4": iou["tome", "0.4"]}
    figures["its control"] = iou["imagepiece tome (control)", "0.4"]
    figures["floor"] = iou["mean of the other maps", ""]
    assert not markdown.lacking(spans | figures, page)
    for page in ("docs/features.md", "docs/imagepiece.md"):
        assert not markdown.lacking({"drop": spans["drop"]}, page)
