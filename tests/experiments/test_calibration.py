"""Calibration: what a schedule changes, by other code, and a page of choices."""

import numpy as np
import pytest
import scipy.special
import scipy.stats

from experiments import calibration, parts
from imagepiece_jax.errors import InputError
from imagepiece_jax.reduction.schedules import Schedule
from tests.experiments import tiny_context


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(calibration, "IMAGES", 5)
    monkeypatch.setattr(calibration, "COSTS", (0.8,))
    monkeypatch.setattr(calibration, "FIXED", ("constant", "proportional"))
    monkeypatch.setattr(calibration, "CURVES", ("curve-0.5-4",))


def test_every_candidate_is_a_schedule():
    for name in calibration.CURVES:
        Schedule.of(name)
    assert len({*calibration.CURVES, *calibration.FIXED}) == 29


def test_few_images_choose_and_others_judge(tmp_path, few):
    context = tiny_context.context(tmp_path / "out", tiny_context.pretrained(tmp_path))
    calibration.calibration(context)
    page = (tmp_path / "out" / "calibration.md").read_text()
    assert page.count(", chosen of 3") == page.count(", the best fixed one") == 1
    change = calibration.Change(context)
    found = change.of("constant", 0.8, "odd")
    assert len(found) == 12 and len(change.of("constant", 0.8, "few")) == 5
    reduction = {**calibration.CLASSES, "macs": 0.8, "counts": "constant"}
    rows = context.images.subset(np.arange(24)[parts.ODD])
    chances = [
        scipy.special.softmax(_logits(context, each, rows).astype(float), axis=1)
        for each in ({"name": "none"}, reduction)
    ]
    np.testing.assert_allclose(
        found, scipy.stats.entropy(*chances, axis=1), rtol=1e-4, atol=1e-9
    )
    assert change.of("constant", 0.01, "few") is None
    context.cache.close()


def _logits(context, reduction, images):
    vit = context.pretrained.pretrained(reduction)
    run = context.measurement(
        vit.model, vit.variables, lambda outputs, batch: {"logits": outputs.logits}
    )
    return run(images)["logits"]


def test_too_few_images(tmp_path):
    context = tiny_context.context(tmp_path / "out", tiny_context.pretrained(tmp_path))
    with pytest.raises(InputError, match="--data has 24 images"):
        calibration.calibration(context)
    context.cache.close()
