import numpy as np
import pytest

from imagepiece_jax.visualize import html
from tests.helpers import handmade_traces, tiny_vit

NAMES = ["one.jpg", '<b>"two".jpg']


def test_the_page_names_figures_and_likeliest_classes():
    """Traces have class 3 for the first image and 4 for the second."""
    text = html.render_page(
        NAMES, *handmade_traces.all_methods(), "w.npz", ["a", "b", "c", "<cat>", None]
    )
    assert text.count("dense: &lt;cat&gt;, 25 % sure") == 2  # caption and alt
    assert text.count("imagepiece: class 4, 50 % sure") == 2
    assert "<h2>&lt;b&gt;&quot;two&quot;.jpg</h2>" in text
    assert "<cat>" not in text
    assert "<td>imagepiece</td><td>0.500</td><td>4</td><td>5, 4</td>" in text
    assert text.count('<img src="figures/') == 6


@pytest.mark.parametrize("options", [{}, {"num_classes": 0, "arch": {"pool": "none"}}])
def test_outputs_without_classes_have_no_likeliest(tmp_path, options):
    vit = tiny_vit.pretrained(depth=1, **options)
    if not options:
        vit = tiny_vit.with_problem_type(vit, "regression")
    images = np.zeros((1, 20, 20, 3), np.uint8)
    list(html.write_page(tmp_path, [vit], images, ["a"]))
    assert "% sure" not in (tmp_path / "index.html").read_text()
