import json

import chex
import numpy as np
import pytest
from PIL import Image

import imagepiece_jax
from imagepiece_jax.commands import recover
from tests.helpers import tiny_vit
from tests.helpers.run_command import call, start

REDUCTION = "--reduction=evit:keep_rate=.5:blocks=(1,)"

pytestmark = pytest.mark.usefixtures("recoveries_compiled_once")


@pytest.fixture
def words(tmp_path):
    """Words with weights, photographs of noise and a new folder."""
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for number, pixels in enumerate(rng.integers(0, 256, (48, 40, 30, 3), np.uint8)):
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number:02}.png")
    imagepiece_jax.save(tiny_vit.pretrained(depth=3), tmp_path / "weights")
    words = [tmp_path / "weights", tmp_path / "photos", f"--out={tmp_path / 'out'}"]
    return [*words, "--crop=.9", REDUCTION, "--steps=40", "--batch-size=8"]


def test_the_folder_holds_the_recovered_model(words, tmp_path):
    ended = call(recover.main, *words).ok()
    vit = imagepiece_jax.load(tmp_path / "out")
    assert vit.reduction.name == "evit"
    assert vit.preprocessing.crop == 0.9
    assert str(vit.recovery) in ended.out
    (variant,) = vit.recovery.variants
    assert variant.steps == 40
    own = json.loads((tmp_path / "out" / "config.json").read_text())["imagepiece_jax"]
    (record,) = own["recovery"]["variants"]
    assert record["images"] == 32
    assert record["held_out"] == 16
    dense = imagepiece_jax.load(tmp_path / "out", reduction="none")
    public = imagepiece_jax.load(tmp_path / "weights")
    chex.assert_trees_all_equal(dense.variables, public.variables)
    # Another cost, or the same at another size, would lose this one.
    for option in ("--reduction=tome:r=2", "--image-size=24"):
        refused = call(recover.main, *words, option)
        assert refused.status == 2 and variant.name in refused.err


# The command sends itself SIGTERM at step 35.
SIGNALED = """
import os, runpy, signal, sys
from imagepiece_jax.recovery.recovery_step import StudentFit

taken = []

def signaled_step(*args, train_step=StudentFit.train_step):
    taken.append(args)
    if len(taken) == 35:
        os.kill(os.getpid(), signal.SIGTERM)
    return train_step(*args)

StudentFit.train_step = signaled_step
sys.argv[1:1] = ["recover"]
runpy.run_module("imagepiece_jax", run_name="__main__", alter_sys=True)
"""


def test_sigterm_saves_the_weights_so_far(words, tmp_path):
    ended = start("-c", SIGNALED, *words, "--seed=5", imported=True)
    assert ended.status == 0
    assert "the weights so far are kept" in ended.err.splitlines()[-1]
    assert not [*tmp_path.glob(".*.tmp")]
    (variant,) = imagepiece_jax.load(tmp_path / "out").recovery.variants
    assert variant.stopped
    assert variant.steps == 34
    assert f"saved in {tmp_path / 'out'}" in ended.out
