"""Does the table tell the plan and its cost, in columns that line up?"""

from imagepiece_jax.models import summary, zoo
from tests.models import tiny


def test_parameters_of_the_model_and_of_one_block():
    """DeiT-Ti: two norms, four projections and an MLP of four times the width."""
    width = 192
    block = 2 * 2 * width + 4 * (width + 1) * width + 2 * width * 4 * width + 5 * width
    model = zoo.create_model("deit_ti")
    assert summary.parameters(model, 224) == (5_717_416, block)


def test_block_table_line_by_line():
    model = tiny.model(tiny.IMAGEPIECE)
    lines = summary.block_table(model).splitlines()
    assert lines[0].split() == [
        *("block", "attention", "MLP", "MMACs"),
        *("reduction", "of", "image", "tokens"),
    ]
    # 4 N D^2 + 2 N^2 D and 8 N D^2 at width 30: 93,600 + 40,560 + 172,800 at first.
    assert [line.split() for line in lines[1:]] == [
        ["0", "26", "24", "0.3", "Retokenize:", "25", "-", "2"],
        ["1", "24", "22", "0.3", "Retokenize:", "23", "-", "2"],
        ["2", "22", "18", "0.2", "TopK:", "21", "-", "4"],
    ]


def test_a_step_that_changes_nothing_is_not_in_the_table():
    model = tiny.model(tiny.EVIT | {"keep_rate": 1.0})
    assert [summary.action(layer) for layer in model.plan] == ["", "", ""]


def test_columns_line_up():
    rows = [("a", "count", "what"), (10, 1, "x"), (9, 1000, "")]
    assert summary.format_table(rows).splitlines() == [
        " a  count  what",
        "10      1  x",
        " 9   1000",
    ]


def test_cost_lines_compare_with_the_dense_model():
    fields = {"reduction": {"name": "imagepiece"}, "stem": "conv"}
    model, dense = zoo.create_model("deit_s", **fields), zoo.create_model("deit_s")
    text = "\n".join(summary.cost_lines(model, dense, 224))
    assert "2.783 GMACs an image, 1.65 times fewer" in text
    assert "patch stem (4.599)" in text
    assert "0.435 in the conv stem" in text
    assert "22,776,856 parameters" in text
    assert "197 tokens at first, 61 at last" in text
