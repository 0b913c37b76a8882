"""Fixtures of tests, from other libraries: python -m tools.fixtures NAME

NAME          writes in tests/fixtures
originals     originals/NAME.npz: checkpoints by their projects' names, and what the
              projects' models (tools/originals.py) compute
rope          rope.npz: small models with rotary positions, their weights and an image
              (float16), and what timm computes of it (float32)
whole_models  whole_models.json: names and shapes of the largest public models, which
              timm builds without memory

Needs torch, timm and transformers.
"""

import dataclasses
import json
import pathlib
import re
import sys

import numpy as np
import timm
import torch

from tools import originals

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "tests" / "fixtures"
# One of each table and of each part that it changes; the others are in tests/parity.
STORED = (
    *("transformers_vit", "transformers_deit", "transformers_dinov2_swiglu"),
    *("transformers_dinov2_registers", "transformers_clip", "transformers_siglip"),
    *("transformers_siglip_classifier", "deit3", "mae", "dino", "dinov2"),
    *("dinov2_registers", "openclip", "openclip_trunk", "vit_jax", "big_vision_siglip"),
)

# Rotary positions: sizes, and the image, of 5 x 7 patches.
SIZE = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 4}
IMAGE = (20, 28)
ROTARY = ("vit_small_plus_patch16_dinov3_qkvb", "eva02_base_patch16_clip_224")
OPENCLIP = "mlfoundations/open_clip, docs/model_profile.csv"
EVA02 = "EVA-02, arXiv:2303.11331, without head"
# Weights of the largest member of each family: (published parameters, where).
LARGEST = {
    "deit_base_distilled_patch16_384.fb_in1k": (88e6, "facebookresearch/deit"),
    "deit3_huge_patch14_224.fb_in1k": (632.1e6, "facebookresearch/deit"),
    "vit_huge_patch14_224.orig_in21k": (632e6, "ViT, arXiv:2010.11929, table 1"),
    "vit_huge_patch14_224.mae": (632e6, "ViT, arXiv:2010.11929, table 1"),
    "vit_base_patch8_224.dino": (85e6, "facebookresearch/dino"),
    "vit_giant_patch14_dinov2.lvd142m": (1.1e9, "facebookresearch/dinov2"),
    "vit_giant_patch14_reg4_dinov2.lvd142m": (1.1e9, "facebookresearch/dinov2"),
    "vit_large_patch14_clip_336.openai": (304.29e6, OPENCLIP),
    "vit_gigantic_patch14_clip_224.laion2b": (1844.91e6, OPENCLIP),
    "vit_so400m_patch14_siglip_384.webli": (428.23e6, OPENCLIP),
    "vit_giantopt_patch16_siglip_384.v2_webli": (1e9, "SigLIP 2, arXiv:2502.14786"),
    "eva02_large_patch14_448.mim_m38m_ft_in22k_in1k": (304e6, EVA02),
    "vit_7b_patch16_dinov3.lvd1689m": (6716e6, "facebookresearch/dinov3"),
}


def write_originals():
    folder = FIXTURES / "originals"
    folder.mkdir(parents=True, exist_ok=True)
    for name in STORED:
        original = originals.ORIGINALS[name]()
        arrays = {k: np.asarray(v, np.float16) for k, v in original.tensors.items()}
        arrays["images"] = originals.images().astype(np.float16)
        arrays["config"] = json.dumps(dataclasses.asdict(original.config))
        path = folder / f"{name}.npz"
        np.savez_compressed(path, outputs=original.outputs, **arrays)
        print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


def randomize_model(model, seed=0):
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


def computed_by_timm(name):
    """{"<name>/..": arrays} of one of ROTARY."""
    fields = SIZE | {"img_size": IMAGE, "num_classes": 5}
    model = timm.create_model(name, pretrained=False, **fields).eval()
    randomize_model(model)
    image = np.random.default_rng(0).normal(size=(1, *IMAGE, 3)).astype(np.float16)
    pixels = torch.from_numpy(image.astype(np.float32).transpose(0, 3, 1, 2))
    with torch.no_grad():
        features = model.forward_features(pixels)
        logits = model.forward_head(features)
    tensors = {k: v.half() for k, v in model.state_dict().items()}
    arrays = {f"tensors/{k}": v.numpy() for k, v in tensors.items()}
    arrays |= {"image": image, "features": features.numpy(), "logits": logits.numpy()}
    return {f"{name}/{key}": value for key, value in arrays.items()}


def write_rope():
    path = FIXTURES / "rope.npz"
    arrays = [computed_by_timm(name) for name in ROTARY]
    np.savez_compressed(path, **arrays[0], **arrays[1])
    print(f"{path}: {path.stat().st_size} bytes, timm {timm.__version__}")


def write_whole_models():
    rows = []
    for name, (published, source) in LARGEST.items():
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False)
        shapes = {k: list(v.shape) for k, v in model.state_dict().items()}
        alike = re.compile(r"blocks\.(\d+)\.")
        block = {k: v for k, v in shapes.items() if k.startswith("blocks.0.")}
        depth = 1 + max(int(m[1]) for m in map(alike.match, shapes) if m)
        others = {k: v for k, v in shapes.items() if not alike.match(k)}
        count = sum(leaf.numel() for leaf in model.parameters())
        row = {"parameters": count, "published": published, "source": source}
        row |= {"depth": depth, "block": block, "others": others}
        rows.append(f"{json.dumps(name)}: {json.dumps(row)}")
        print(name, depth, count)
    path = FIXTURES / "whole_models.json"
    path.write_text("{\n" + ",\n".join(rows) + "\n}\n")


WRITERS = {"originals": write_originals, "rope": write_rope}
WRITERS["whole_models"] = write_whole_models

if __name__ == "__main__":
    for name in sys.argv[1:]:
        WRITERS[name]()
