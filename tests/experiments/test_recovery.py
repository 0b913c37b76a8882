"""The study of `recover`: its learning and judging images."""

import numpy as np
import pytest

from experiments import recovery
from imagepiece_jax.data.pictures import as_source
from imagepiece_jax.evaluation.result_cache import encode_bits
from tests.helpers.picture_files import write_images
from tests.helpers.recovery_trials import DROPPING, MERGING, noise, reduced_model


def test_no_image_both_teaches_and_judges(tmp_path):
    images = np.full((12, 4, 4, 3), np.arange(12)[:, None, None, None], np.uint8)
    for folder in ("data/nips2017_224_jpg/images", "val"):
        write_images(tmp_path / folder, images)
    sources = recovery.open_sources(tmp_path, tmp_path / "val")
    colors = {}
    for name, source in sources.items():
        colors[name] = {int(source[i].pixels[0, 0, 0]) for i in range(len(source))}
    assert colors["learned"] == {1, 3, 5, 7, 9, 11}
    assert colors["photographs"] == {0, 2, 4, 6, 8, 10}
    assert len(colors["imagenette"]) == 12


def test_points_count_judging_photographs_alone():
    """Fold A answers for 200 odd photographs, fold B for 400 even ones."""
    even = np.arange(1000) % 2 == 0
    lines = {}
    for fold, learned in (("A", even), ("B", ~even)):
        right = {"dense": np.ones(1000, bool), "before": learned}
        right["after"] = learned | (np.arange(1000) >= 600)
        bits = {name: encode_bits(answers) for name, answers in right.items()}
        lines[f"peaks-0.5-{fold}"] = {"right": bits}
    ((cost, (lost, recovered)),) = recovery.points_lost(lines, "peaks").items()
    assert cost == 0.5
    assert lost.value == 100
    # Photographs from 600 on are right: all 200 odd ones, and 160 of the even ones.
    assert recovered.value == pytest.approx(100 * 240 / 600)


@pytest.mark.parametrize("reduction", [MERGING, DROPPING])
def test_an_encoders_maps_are_judged(reduction):
    encoder = reduced_model(reduction, num_classes=0)
    means = recovery.judge_recovery(encoder, encoder, as_source(noise(12)))
    before = means["before"]
    assert means["after"] == before
    # Dropped patches do not count; merged ones share a vector.
    assert (before["unreachable"] > 0) == (reduction == MERGING)
    assert before["unreachable"] <= before["patches"]
