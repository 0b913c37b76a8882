"""The chosen sets elsewhere: damage by hand, costs that add up, tables that pair."""

import numpy as np
import pytest
from PIL import Image

from experiments import carried, parts
from tests.experiments import tiny_context


def photograph(side=32):
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
    return np.asarray(small.resize((side, side), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("name", carried.ALL_DAMAGE)
def test_damage_keeps_the_form_and_is_drawn_by_the_index(name):
    damage, pixels = carried.ALL_DAMAGE[name], photograph()
    if damage is None:
        return
    batch = {
        "image": np.stack([pixels, pixels])[None],
        "index": np.array([[3, 4]]),
        "label": np.array([[0, 1]]),
    }
    found = carried.damaged(batch, damage)
    assert found["image"].shape == (1, 2, 32, 32, 3)
    assert found["image"].dtype == np.uint8
    np.testing.assert_array_equal(found["image"][0, 1], damage(pixels, 4))
    np.testing.assert_array_equal(found["label"], batch["label"])
    differ = np.any(found["image"][0, 0] != found["image"][0, 1])
    assert differ == name.startswith("noise")


def test_damage_has_its_strength():
    gray = np.full((128, 128, 3), 128, np.uint8)
    noise = carried.add_noise(gray, 0, std=0.1).astype(float) - 128
    # 49,152 draws: their deviation strays by a third of a percent.
    assert noise.std() == pytest.approx(25.5, rel=0.02)
    point = np.zeros((33, 33, 3), np.uint8)
    point[16, 16] = 255
    assert carried.blur(point, 0, radius=2)[16, 16, 0] < 255 / 8
    np.testing.assert_array_equal(carried.blur(gray, 0, radius=2), gray)
    np.testing.assert_array_equal(carried.shrink(gray, 0, side=16), gray)
    pixels = photograph().astype(int)
    errors = [
        np.abs(carried.compress(photograph(), 0, quality=q) - pixels).mean()
        for q in (95, 25, 10)
    ]
    assert errors == sorted(errors) and errors[0] < errors[2]


def test_sets_stand_in_the_crossed_table():
    for reduction in carried.CHOSEN.values():
        assert reduction["name"] in parts.MERGING
        assert reduction["counts"] in parts.SCHEDULES


def test_pages(tmp_path, monkeypatch):
    """Figures are those of the images as damaged; what is out of reach stays empty."""
    for name in ("CHOSEN", "SPARED"):
        monkeypatch.setattr(carried, name, {"like ToMe": {"name": "tome"}})
    monkeypatch.setattr(carried, "EVENLY", {"ToMe": {"name": "tome"}})
    monkeypatch.setattr(carried, "COSTS", (0.75, 0.01))
    monkeypatch.setattr(carried, "SMALLER", (2,))
    monkeypatch.setattr(carried, "STAGES", {})
    monkeypatch.setattr(carried, "FASTER", (("like ToMe", 0.75),) * 2)
    monkeypatch.setattr(carried, "CROSSED", (0, 2))
    monkeypatch.setattr(carried, "CROSSED_COSTS", (0.6,))
    monkeypatch.setattr(carried, "LARGE", 20)
    kept = {name: carried.DAMAGE[name] for name in ("as they are", "noise .2")}
    monkeypatch.setattr(carried, "DAMAGE", kept)
    weights = tiny_context.pretrained(tmp_path)
    context = tiny_context.context(tmp_path / "out", weights)
    judge = carried.Judge(context, context.images)

    table = carried.level_table(judge, "as they are", carried.CHOSEN | carried.TOME)
    table = table.splitlines()
    shares = [float(line.split(" | ")[1]) for line in table[3:]]
    assert shares == pytest.approx([0.75] * 2, abs=0.02)  # .01 is out of reach

    ours = judge.system("ToMe", {"name": "tome"}, 0.6, judge.smaller(2))
    assert ours.image_size == (14, 14)
    assert judge.share(ours) == pytest.approx(0.6, abs=0.02)
    assert judge.system("ToMe", {"name": "tome"}, 0.5, judge.smaller(8)) is None

    whole = context.evaluate(weights, {"name": "none"})
    np.testing.assert_array_equal(judge.answers(judge.dense()).right, whole.right)
    carried.carried(context)
    page = (tmp_path / "out" / "carried.md").read_text()
    (line,) = [x for x in page.splitlines() if x.startswith("| dense | 1.000 | ")][:1]
    assert line.split(" | ")[2] == f"{100 * whole.right[1::2].mean():.1f}"
    carried.level(context)
    page = (tmp_path / "out" / "level.md").read_text()
    assert page.count("| dense, 14 pixels | 0.") == 1
    assert "| like ToMe at 0.75 - like ToMe at 0.75 | points | +0.0 [" in page
    assert page.splitlines()[-1].endswith("| 1 | 1 | open |")
    context.cache.close()
