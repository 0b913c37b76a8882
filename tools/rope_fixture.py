"""Small models with rotary positions, computed by timm: python -m tools.rope_fixture

Writes tests/fixtures/rope.npz: for each of MODELS, reduced in width and depth, random
weights of trained magnitude (float16), an image, and what timm computes of it, features
of all tokens and pooled logits (float32). Needs torch and timm.
"""

import pathlib

import numpy as np
import timm
import torch

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "tests" / "fixtures" / "rope.npz"
SIZE = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 4}
IMAGE = (20, 28)  # 5 x 7 patches
MODELS = ("vit_small_plus_patch16_dinov3_qkvb", "eva02_base_patch16_clip_224")


def randomize(model, seed=0):
    """Weights that let no fault hide: what is added or multiplied is large.

    Only what enters the first norm is small, so that its epsilon counts.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if value.ndim > 1 and name.endswith("weight"):
                noise /= value[0].numel() ** 0.5
            elif "norm" in name and name.endswith("weight"):
                noise = 1 + 0.3 * noise
            elif "gamma" in name:
                noise = 0.5 + 0.3 * noise
            elif not (name.endswith("_token") or name == "pos_embed"):
                noise *= 0.3
            if name.startswith(("patch_embed", "cls_", "reg_", "pos_embed")):
                noise *= 0.02
            value.copy_(noise.half().float())


def computed(name):
    """{"<name>/..": arrays} of one of MODELS."""
    fields = SIZE | {"img_size": IMAGE, "num_classes": 5}
    model = timm.create_model(name, pretrained=False, **fields).eval()
    randomize(model)
    image = np.random.default_rng(0).normal(size=(1, *IMAGE, 3)).astype(np.float16)
    pixels = torch.from_numpy(image.astype(np.float32).transpose(0, 3, 1, 2))
    with torch.no_grad():
        features = model.forward_features(pixels)
        logits = model.forward_head(features)
    tensors = {k: v.half() for k, v in model.state_dict().items()}
    found = {f"tensors/{k}": v.numpy() for k, v in tensors.items()}
    found |= {"image": image, "features": features.numpy(), "logits": logits.numpy()}
    return {f"{name}/{key}": value for key, value in found.items()}


def main():
    arrays = {}
    for name in MODELS:
        arrays |= computed(name)
    OUT.parent.mkdir(exist_ok=True)
    np.savez_compressed(OUT, **arrays)
    print(f"{OUT}: {OUT.stat().st_size} bytes, timm {timm.__version__}")


if __name__ == "__main__":
    main()
