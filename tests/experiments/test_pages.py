"""Pages of a study whose accuracy follows from MACs."""

import re
import types

import numpy as np
import pytest

from experiments import controls, hyperspeed, masking, paper_tables, published
from experiments.models import OffTheShelf
from experiments.paper import Answers, Study
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.evaluation.result_cache import describe_plan
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.models.pretrained import Pretrained
from tests.helpers import tiny_vit

IMAGES = 1000


class Photographs:
    text = f"{IMAGES} images of a set"
    preprocessing = Preprocessing(224)
    facts = {}

    def __len__(self):
        return IMAGES

    def read_batches(self):
        """Three of the images."""
        image = np.zeros((1, 3, 224, 224, 3), np.uint8)
        return [{"image": image, "index": np.array([[3, 0, 7]])}]


class Monotone(Study):
    """A study of DeiT-Ti that is right on IMAGES * (GMACs / 1.3) ** 0.25 images.

    A square hides four of them. `programs` has the squares by method.
    """

    def evaluate(self, vit, reduction, images=None):
        figures = describe_plan(vit.reduced_model(reduction))
        figures["untrained_selectors"] = False
        right = round(IMAGES * (figures["gmacs"] / 1.3) ** 0.25)
        if images is not None:
            (batch,) = images.read_batches()
            squares = str(images.facts), batch["corners"].tobytes()
            self.programs.setdefault(reduction.partition(":")[0], []).append(squares)
            right -= 4 * images.facts["masks"]
        return Answers(figures, np.arange(IMAGES) < right)


@pytest.fixture
def study(tmp_path):
    size = {"name": "deit_ti", "image_size": 224, "num_classes": 1000}
    models = OffTheShelf(tiny_vit.loaded_model("none", **size, stem="patch"))
    return Monotone(models=models, images=Photographs(), out=tmp_path, cache=None)


def table_cells(study, page):
    """{first cell: the line's other cells} of a page's tables."""
    text = (study.out / f"{page}.md").read_text()
    lines = [line.strip("|") for line in text.splitlines() if line[:1] == "|"]
    rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    return {row[0]: row[1:] for row in rows}


def points(study, reduction, base):
    rights = [study.evaluate(study.pretrained, x).right for x in (reduction, base)]
    return 100 * (rights[0].mean() - rights[1].mean())


def test_gains_are_the_combinations_over_their_methods(study):
    paper_tables.write_table_page(study, "combos")
    gains = table_cells(study, "combos")
    for single, combined in paper_tables.PAIRS[:3]:
        gain = points(study, combined.reduction, single.reduction)
        pair = [study.pretrained.reduced_model(r.reduction) for r in (single, combined)]
        costs = [f"{model_macs(model) / 1e9:.3f}" for model in pair]
        assert gains[single.name][:2] == costs
        assert gains[single.name][2].startswith(f"{gain:+.1f} [")


def test_ablation_compares_with_the_default(study):
    default = paper_tables.IMAGEPIECE_PATCH.reduction
    changed = paper_tables.list_switches("patch")
    with controls.register_methods():
        paper_tables.write_table_page(study, "ablation")
        changes = table_cells(study, "ablation")
        for row in changed:
            change = points(study, row.reduction, default)
            assert changes[row.name][0].startswith(f"{change:+.1f} [")
    assert not set(changes) & {row.name for row in paper_tables.list_switches("conv")}


def test_hyperspeed_compares_curves_where_all_have_points(study):
    hyperspeed.write_hyperspeed_page(study)
    text = (study.out / "hyperspeed.md").read_text()
    assert "mean acc1 from 0.483 to 0.650 GMACs" in text
    # One curve of accuracy by MACs: the means differ by how straight lines cut it.
    mean = 100 * np.mean((np.linspace(0.483, 0.650, 1001) / 1.3) ** 0.25)
    names = [name for name in hyperspeed.SWEEPS if name != "ImagePiece"]
    for name in (*names, "ImagePiece, patch stem"):
        cells = re.findall(rf"^\| {name} \| ([\d.]+) \[[^|]*\|$", text, re.MULTILINE)
        assert [*map(float, cells)] == [pytest.approx(mean, abs=0.2)]
    dense = published.ACCURACY_SPEED["deit_s"]["DeiT"][0]
    drop = published.HYPERSPEED["drop"]["ToMe"]
    assert table_cells(study, "hyperspeed")["ToMe"][-1] == f"{dense - drop:.2f}"


def with_fresh_selectors(vit, reduction, seed):
    kinds = ["selectors"] if reduction.startswith("dynamicvit") else []
    return types.SimpleNamespace(untrained_kinds=kinds)


def test_all_methods_get_the_same_squares(study, monkeypatch):
    # Drawing selectors for DeiT-Ti takes seconds.
    monkeypatch.setattr(Pretrained, "with_reduction", with_fresh_selectors)
    masking.write_masking_page(study)
    squares = study.programs
    assert len(squares["none"]) == 3 * len(published.MASKS)
    assert squares.keys() == {"none", "evit", "tome", "imagepiece"}
    assert all(of_method == squares["none"] for of_method in squares.values())
    accuracy = study.evaluate(study.pretrained, "none").right.mean()
    page = (study.out / "masking.md").read_text()
    line = next(x for x in page.splitlines() if x.startswith("| DeiT | acc1, % (meas"))
    cells = line.split(" | ")
    assert cells[2].startswith(f"{100 * accuracy:.1f} [")
    masked = accuracy - 4 * np.mean(published.MASKS) / IMAGES
    assert cells[-1].startswith(f"{100 * masked:.1f} [")


def test_mean_height_equals_many_points():
    x, y = np.random.default_rng(0).uniform(0, 1, (2, 7))
    order = np.argsort(x)
    low, high = x[order[1]] + 0.01, x[order[5]]
    many = np.interp(np.linspace(low, high, 200_001), x[order], y[order])
    height = hyperspeed.mean_height(x, y, low, high)
    assert height == pytest.approx(many.mean(), abs=1e-5)
