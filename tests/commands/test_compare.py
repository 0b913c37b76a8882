import pytest
from PIL import Image

import imagepiece_jax
from imagepiece_jax.commands import compare
from imagepiece_jax.common import statistics
from imagepiece_jax.common.files import read_json_lines
from imagepiece_jax.evaluation.result_cache import POINTS_FILE_NAME, decode_bits
from tests.helpers import small_photographs, tiny_vit
from tests.helpers.run_command import call

pytestmark = pytest.mark.usefixtures("evaluations_compiled_once")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    vit = tiny_vit.pretrained(num_classes=10, image_size=16, depth=2)
    return imagepiece_jax.save(vit, tmp_path_factory.mktemp("weights") / "w")


def test_rows_are_measured_once_into_table_and_plot(weights, tmp_path):
    """A second call measures its new row alone."""
    out = tmp_path / "out"
    words = [weights, "digits", "--out", out, "--reductions", "tome:r=2"]
    ended = call(compare.main, *words, "--image-sizes", 12).ok()
    lines = read_json_lines(out / POINTS_FILE_NAME)
    assert len(lines) == 3
    results = [line["result"] for line in lines]
    assert [result["tokens"] for result in results] == [17, 13, 10]
    assert all(result["images"] == 359 for result in results)
    gmacs = [result["gmacs"] for result in results]
    assert gmacs == sorted(gmacs, reverse=True)
    page = (out / "compare.md").read_text()
    assert page in ended.out
    assert "359 of digits" in page
    dense, tome, smaller = [decode_bits(result["right"], 359) for result in results]
    for right, other in ((tome, dense), (tome, smaller), (smaller, dense)):
        change = statistics.paired_difference(right, other)
        assert statistics.format_estimate(change, signs=True) in page
    with Image.open(out / "compare.png") as picture:
        assert picture.format == "PNG"
    second = call(compare.main, *words, "evit:blocks=(1,)").ok()
    assert second.err.count("measuring") == 1
    assert len(read_json_lines(out / POINTS_FILE_NAME)) == 4


def test_a_damaged_photograph_ends_a_comparison_with_its_name(tmp_path):
    vit = tiny_vit.pretrained(num_classes=0, depth=1)
    saved = imagepiece_jax.save(vit, tmp_path / "w")
    photos = small_photographs.write_photographs(tmp_path / "photos", 13)
    words = [saved, photos, "--reductions=tome:r=4", f"--out={tmp_path / 'out'}"]
    (photos / "005.png").write_bytes(b"no image")
    ended = call(compare.main, *words, "--workers=0")
    assert ended.status == 2 and "005.png" in ended.lines[-1]
