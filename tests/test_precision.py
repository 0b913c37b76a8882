import re

import jax
import numpy as np
import pytest

import imagepiece_jax
from experiments import study
from imagepiece_jax.commands import evaluate
from imagepiece_jax.data.batches import Batches
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.data.source import ArraySource
from imagepiece_jax.visualize.trace import trace_tokens
from imagepiece_jax.weights.load import load
from tests.helpers import tiny_vit
from tests.helpers.run_command import call

SIZE = dict(embed_dim=64, depth=2, num_heads=4, stem="conv")
SETTING = "imagepiece:merge_blocks=(0,):prune_blocks=(1,)"


@pytest.fixture
def lowered(tmp_path):
    """A function: {name of a program compiled since: its StableHLO}."""
    folder = tmp_path / "programs"
    folder.mkdir()
    jax.config.update("jax_dump_ir_to", str(folder))
    yield lambda: {path.name: path.read_text() for path in folder.iterdir()}
    jax.config.update("jax_dump_ir_to", None)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    vit = tiny_vit.pretrained(image_size=16, num_classes=10, **SIZE)
    return imagepiece_jax.save(vit, tmp_path_factory.mktemp("weights") / "mini")


def precisions(programs):
    """{program that holds a model: precisions of its products and convolutions}."""
    by_program = {}
    for name, text in programs.items():
        lines = re.findall(r"stablehlo\.(?:dot_general|convolution)[^\n]*", text)
        kinds = {tuple(re.findall("HIGHEST|HIGH|DEFAULT", line)) for line in lines}
        by_program |= {name: kinds} if len(lines) > 2 * 6 else {}  # of two blocks
    return by_program


FULL = {("HIGHEST", "HIGHEST")}


def test_traces_and_studies_have_full_precision(weights, lowered):
    variant = load(weights).with_default_execution().with_reduction(SETTING)
    images = np.zeros((2, 16, 16, 3), np.uint8)
    trace_tokens(variant.model, variant.variables, images)
    transform = Preprocessing(16, resize="none")
    batches = Batches(source=ArraySource(images), transform=transform, batch_size=2)
    answer = study.model_reader(variant, lambda outputs, _: {"logits": outputs.logits})
    answer(batches.read_batches(threads=1))
    assert list(precisions(lowered()).values()) == [FULL, FULL]


def test_a_program_has_full_precision_only_where_it_decides(weights, lowered):
    words = [weights, "digits", f"--reduction={SETTING}", "--workers=0"]
    call(evaluate.main, *words, "--optimized").ok()
    (program,) = precisions(lowered()).values()
    assert program > FULL
