"""Published weights: reference outputs and accuracies.

Reference outputs are from timm (the dense DeiT-Ti), the authors' code (EViT) and
transformers (DINOv2-S), in float32 on a CPU.
"""

import functools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imagepiece_jax
from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.kernels.merging import DROPPED
from imagepiece_jax.models.config import IMAGENET_MEAN, IMAGENET_STD
from imagepiece_jax.models.create import create_model
from tests.helpers import tiny_vit
from tests.helpers.parity_record import distance
from tests.helpers.run_command import start

pytestmark = pytest.mark.slow

WEIGHTS = "weights/deit_tiny_patch16_224"


@pytest.fixture(scope="module")
def variables(assets):
    return imagepiece_jax.load(assets / f"{WEIGHTS}.npz").variables


@pytest.fixture(scope="module")
def reference(assets):
    with np.load(assets / "fixtures/deit_tiny_timm.npz") as file:
        return types.SimpleNamespace(**file)


@pytest.fixture(scope="module")
def images(reference):
    return normalize(jnp.asarray(reference.images_uint8), IMAGENET_MEAN, IMAGENET_STD)


def test_patch_projection_embeddings_and_logits(reference, variables, images):
    model = create_model("deit_ti", attention="xla")

    def is_read(_, method):
        return method in ("__call__", "_embed_images")

    options = {"capture_intermediates": is_read, "mutable": ["intermediates"]}
    run = tiny_vit.compiled(functools.partial(model.apply, **options))
    outputs, values = run(variables, images)
    values = values["intermediates"]
    (patches,) = values["patch_embed"]["__call__"]
    patches = patches.reshape(4, 196, 192)
    np.testing.assert_allclose(patches[:1], reference.patch_embed, atol=1e-4)
    (state,) = values["_embed_images"]
    assert state.grid == (14, 14)
    np.testing.assert_allclose(state.x[:2], reference.embeddings, atol=1e-4)
    np.testing.assert_allclose(outputs.tokens[:, 0], reference.prelogits, atol=1e-4)
    np.testing.assert_allclose(outputs.logits, reference.logits, atol=1e-4)


@pytest.fixture(scope="module")
def evit(assets, variables, images):
    """(the authors' arrays by name, our plan, our Outputs) for two images."""
    with np.load(assets / "fixtures/deit_tiny_reduced.npz") as file:
        arrays = {name.removeprefix("evit_keep0.7_fuse_"): file[name] for name in file}
    reduction = "evit:keep_rate=0.7:fuse_token=True"
    model = create_model("deit_ti", reduction, attention="xla")
    outputs = tiny_vit.compiled(model.apply)(variables, images[:2])
    return types.SimpleNamespace(**arrays), model.plan, outputs


def test_evits_logits_and_token_counts_equal_the_authors(evit, reference):
    theirs, plan, outputs = evit
    np.testing.assert_allclose(outputs.logits, theirs.logits, atol=1e-4)
    assert np.abs(outputs.logits - reference.logits[:2]).max() > 0.1
    assert [layer.mlp_tokens for layer in plan] == theirs.tokens.tolist()


@pytest.mark.parametrize("image", [0, 1])
def test_evit_keeps_the_authors_tokens(evit, image):
    """Tokens are compared as sets of patches: slots are in another order."""
    theirs, _, outputs = evit
    kept_indices = [theirs.idx0, theirs.idx1, theirs.idx2]
    our_groups = their_groups = [frozenset([patch]) for patch in range(196)]
    for indices, result in zip(kept_indices, outputs.results, strict=True):
        slots = result.slot_of_token[image]
        assert DROPPED not in slots
        our_groups = [
            frozenset.union(*(our_groups[i] for i in np.flatnonzero(slots == slot)))
            for slot in range(result.n_out)
        ]
        kept = indices[image].tolist()
        fused = [their_groups[i] for i in range(len(their_groups)) if i not in kept]
        their_groups = [their_groups[i] for i in kept] + [frozenset.union(*fused)]
        assert len(our_groups) == len(their_groups)
        assert set(our_groups) == set(their_groups)
        assert our_groups[-1] == their_groups[-1]  # the fused token is last in both


def evaluate_200(assets, out, *words):
    data = assets / "data/nips2017_224_jpg/labels.csv"
    weights = assets / f"{WEIGHTS}.npz"
    words = (weights, f"csv:{data}", "--json", out, "--crop=1", *words)
    words += ("--dtype=float32", "--batch-size=40", "--workers=0", "--limit=200")
    evaluate = ("-m", "imagepiece_jax", "evaluate", *words)
    start(*evaluate, imported=True, timeout=600, XLA_FLAGS="").ok()
    return json.loads(out.read_text())


def test_accuracy_on_200_images_equals_timms(assets, tmp_path):
    """168 right, 193 among five; a logit change of .016 would change no answer."""
    result = evaluate_200(assets, tmp_path / "out.json")
    assert result["images"] == 200
    assert result["acc1"] == pytest.approx(100 * 168 / 200)
    assert result["acc5"] == pytest.approx(100 * 193 / 200)
    assert round(result["gmacs"], 3) == 1.254


def test_accuracy_with_dropped_tokens_equals_independent_code(assets, tmp_path):
    """159 of 200 at .6 of the MACs, by independent code (77.8 % of all 1,000)."""
    counts = "(180,165,149,137,125,113,103,94,85,85,85,85)"  # ImagePiece's
    reduction = f"--reduction=evit:fuse_token=False:counts={counts}"
    result = evaluate_200(assets, tmp_path / "out.json", reduction)
    assert (result["images"], result["acc1"]) == (200, pytest.approx(100 * 159 / 200))
    assert round(result["gmacs"], 3) == 0.754


def test_features_of_dinov2_equal_transformers(assets):
    path = assets / "fixtures/dinov2_small_transformers.npz"
    if not path.exists():
        pytest.skip(f"{path} is missing")
    theirs = dict(np.load(path))
    vit = imagepiece_jax.load(assets / "weights/dinov2_small", image_size=224)
    options = {"layers": [5], "norm": False}
    with jax.default_matmul_precision("highest"):
        maps = imagepiece_jax.features(vit, theirs["pixels"], **options)
    for name, features in (("last_hidden_state", maps), ("block_6", maps.layers[0])):
        patches = features.patches.reshape(len(features.patches), -1, 384)
        tokens = np.concatenate([features.prefix, patches], axis=1)
        assert distance(tokens[: len(theirs[name])], theirs[name]) < 1e-4
    assert distance(maps.pooled, theirs["pooler_output"]) < 1e-4
