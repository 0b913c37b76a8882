import json

import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.models import timm_tensors
from imagepiece_jax.models.create import create_model
from tests.helpers import named_models, tiny_vit
from tests.helpers.run_command import call
from tests.helpers.tiny_benchmark import SMALL
from tools import torch_baselines

DEPTH = 4

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm.models.vision_transformer")


@pytest.fixture(scope="module")
def vit():
    """timm's model of the tiny size with random weights, without ties."""
    torch.manual_seed(0)
    model = timm.VisionTransformer(
        img_size=224,
        patch_size=16,
        embed_dim=48,
        depth=DEPTH,
        num_heads=3,
        num_classes=tiny_vit.CLASSES,
    )
    for name, parameter in model.named_parameters():
        around = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        torch.nn.init.normal_(parameter, around, 0.2)
    return model.eval()


def run_ours(vit, reduction=None, **options):
    """Our model with the same weights, as a function of NHWC images."""
    size = {"patch_size": 16, "embed_dim": 48, "depth": DEPTH, "num_heads": 3}
    size |= {"num_classes": tiny_vit.CLASSES} | options
    model = create_model(named_models.config("deit_ti", **size), reduction)
    state = {name: value.numpy() for name, value in vit.state_dict().items()}
    variables = timm_tensors.from_timm(state, tiny_vit.shapes(model))
    return lambda images: tiny_vit.jit(model.apply)(variables, images).logits


@pytest.mark.parametrize("r", [0, 13])
def test_tome_equals_ours(vit, r):
    reduction = f"tome:r={r}"
    images = np.random.default_rng(1).normal(size=(3, 224, 224, 3)).astype("f")
    expected = run_ours(vit, reduction=reduction)(jnp.asarray(images))
    with torch.inference_mode():
        logits = torch_baselines.tome_forward(
            vit, torch.tensor(images).permute(0, 3, 1, 2), r
        )
        dense = vit(torch.tensor(images).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(logits.numpy(), expected, atol=1e-4)
    assert np.allclose(logits.numpy(), dense, atol=1e-4) == (r == 0)


@pytest.mark.slow  # compiles two steps of training
def test_both_libraries_take_turns(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_baselines, "VARIANTS", ("eager",))
    out = tmp_path / "out.json"
    words = ["deit_ti", "--image-size=32", *SMALL]
    rows = []
    for mode in ("inference", "train"):
        ended = call(torch_baselines.main, *words, f"--mode={mode}", f"--json={out}")
        assert (ended.status, ended.err) == (0, "")
        rows += [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["mode"], row["config"]) for row in rows] == [
        ("inference", "dense"),
        ("inference", "timm deit_ti, eager"),
        ("inference", "ToMe r=13 on timm deit_ti, eager"),
        ("train", "dense"),
        ("train", "timm deit_ti, eager"),
    ]
    dense = rows[1]
    assert rows[2]["gmacs"] < dense["gmacs"]
    assert rows[4]["gmacs"] == pytest.approx(3 * dense["gmacs"])
    assert {"torch", "timm"} <= set(dense["versions"])
    assert all(row["throughput"] > 0 for row in rows)
