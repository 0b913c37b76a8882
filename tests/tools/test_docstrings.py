"""Docstrings by our template as Google's style writes them."""

import pathlib
import re

import imagepiece_jax
from tools.docstrings import google_style

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_parts_of_a_docstring():
    text = """Images, scaled.

images: [B, H, W, 3] float32,
    normalized
factor and shift: above 0
Returns images: [B, H, W, 3] float32.
Raises InputError: for another shape, or where
there are none.

    scaled(images, 3)

A note: this is text.
Source: none, 2026."""
    assert (
        google_style(text, {"images", "factor", "shift"})
        == """Images, scaled.

Args:
    images: [B, H, W, 3] float32, normalized
    factor: above 0
    shift: above 0

Returns:
    images: [B, H, W, 3] float32.

Raises:
    InputError: for another shape, or where there are none.

```python
scaled(images, 3)
```

A note: this is text.

Source:
    none, 2026."""
    )


def test_the_api_page_has_every_public_name():
    text = (ROOT / "docs" / "api.md").read_text("utf-8")
    names = re.findall(r"^::: imagepiece_jax\.(\w+)$", text, re.MULTILINE)
    assert sorted(names) == sorted(imagepiece_jax.__all__)
