"""The API page is made of the docstrings as they are."""

import imagepiece_jax
from tools import api_reference


def test_the_page_is_current():
    """If not: python -m tools.api_reference"""
    assert api_reference.OUT.read_text("utf-8") == api_reference.page()


def test_every_public_name_has_a_heading():
    headings = api_reference.OUT.read_text("utf-8").splitlines()
    assert {f"## {name}" for name in imagepiece_jax.__all__} <= set(headings)


def test_parts_of_a_docstring():
    def scaled(images, factor: "float" = 2.0, *, other: dict[str, int] | None = None):
        """Images, scaled.

        images: [B, H, W, 3] float32,
            normalized
        factor: above 0
        Returns [B, H, W, 3] float32.
        Raises InputError: for another shape.

            scaled(images, 3)

        Source: none, 2026.
        """

    assert api_reference.described(scaled) == [
        "Images, scaled.",
        "- `images`: [B, H, W, 3] float32, normalized\n- `factor`: above 0\n"
        "\n**Returns** [B, H, W, 3] float32.\n"
        "\n**Raises** InputError: for another shape.",
        "```python\nscaled(images, 3)\n```",
        "**Source** none, 2026.",
    ]
    assert api_reference.signature("scaled", scaled) == (
        "```python\nscaled(images, factor: 'float' = 2.0, *, other: dict[str, int] | "
        "None = None)\n```"
    )
