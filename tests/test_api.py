"""docs/api.md has every public name, and no argument that is none."""

import inspect
import re

import imagepiece_jax
from tests.runs import ROOT

HEADS = re.findall(
    r"^### `(\w+)(?:\((.*)\))?`$", (ROOT / "docs" / "api.md").read_text("utf-8"), re.M
)


def test_the_page_lists_the_public_names():
    assert sorted(name for name, _ in HEADS) == sorted(imagepiece_jax.__all__)


def test_signatures_have_arguments_that_exist():
    for name, signature in HEADS:
        if not signature:  # of an error
            continue
        parameters = inspect.signature(getattr(imagepiece_jax, name)).parameters
        named = re.findall(r"(\w+)(?:=[^,]*)?(?:, |$)", signature)
        assert set(named) <= {*parameters}, name
