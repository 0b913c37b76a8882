"""A module and a line in a table make a format of exported files."""

import sys
import types

import numpy as np
import pytest

import imagepiece_jax
from imagepiece_jax.exporters.program_facts import read_facts
from imagepiece_jax.models import program
from tests.helpers import tiny_vit
from tests.helpers.refused_calls import refused


class Halves:
    """A program that returns logits of 0.5 for the ten digits."""

    def __init__(self, vit, facts):
        self.model = vit.model
        self.config = vit.config
        self.class_names = None
        self.origin = vit.origin
        self.facts = facts
        self.batch_size = None

    def __call__(self, pixels, name="logits", batch_size=None):
        return np.full((len(pixels), 10), 0.5, np.float32)


def write_graph(path, graph):
    path.write_text(graph)


@pytest.fixture
def text_format_vit(monkeypatch):
    """Register a format of text files."""
    vit = tiny_vit.pretrained("tome:r=3", num_classes=10, image_size=16, depth=1)
    form = types.ModuleType("format_of_texts")
    form.FORMAT_TITLE = "a text"
    form.WRITER_MODULE = "json"
    form.FORMAT_FACTS = {"lines": 1}
    form.FORMAT_DTYPES = ("float32",)
    form.FORMAT_VERSION = "text"
    form.HAS_OPEN_BATCH = True
    form.build_graph = lambda vit, interface, **options: f"{interface.output_names}"
    form.write_graph = write_graph
    form.remove_earlier_weights = lambda *files: None
    form.open_file = lambda path, threads: Halves(vit, read_facts(path))
    monkeypatch.setitem(sys.modules, form.__name__, form)
    monkeypatch.setitem(program.FORMAT_MODULES, ".txt", form.__name__)
    return vit


def test_a_line_in_the_table_adds_a_format(tmp_path, text_format_vit):
    file = imagepiece_jax.export(text_format_vit, tmp_path / "m.TXT")
    assert file.read_text() == "['logits']"
    facts = read_facts(file)
    assert (facts["lines"], facts["method"]) == (1, "tome:r=3")
    assert program.is_exported(file)
    result = imagepiece_jax.evaluate(file, "digits", limit=40, workers=0)
    assert result["loss"] == pytest.approx(np.log(10))  # all classes alike
    assert (result["reduction"], result["recovered"]) == ("tome:r=3", None)
    assert result["gmacs"] == pytest.approx(text_format_vit.gmacs)
    with refused("m.TXT", "an exported program"):
        imagepiece_jax.load(file)


def test_another_ending_is_refused(tmp_path):
    assert not program.is_exported("model.npz")
    for use in (program.open_program, imagepiece_jax.evaluate):
        with refused("m.engine", "does not end in .onnx"):
            use(tmp_path / "m.engine")
