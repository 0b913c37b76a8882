"""Fixtures of checkpoints' layouts: python -m tools.layout_fixtures

Writes tests/fixtures/layouts/NAME.npz for each of ORIGINALS: a checkpoint by its
project's names, and what the project's model computes of `originals.images()`. Needs
torch, timm and transformers.
"""

import json
import pathlib

import numpy as np

from tools import originals, originals_clip, originals_google

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "layouts"
ORIGINALS = {
    make.__name__: make
    for make in (
        originals.transformers_vit,
        originals.transformers_vit_features,
        originals.transformers_deit,
        originals.transformers_dinov2,
        originals.transformers_dinov2_swiglu,
        originals.transformers_dinov2_registers,
        originals.transformers_clip,
        originals.transformers_clip_projection,
        originals.transformers_clip_vision,
        originals.transformers_siglip,
        originals.transformers_siglip_classifier,
        originals.timm_swiglu,
        originals.deit3,
        originals.mae,
        originals.mae_finetuned,
        originals.dino,
        originals.dinov2,
        originals.dinov2_registers,
        originals_clip.openai_clip,
        originals_clip.openclip,
        originals_clip.openclip_trunk,
        originals_google.vit_jax,
        originals_google.big_vision_siglip,
        originals_google.big_vision_mean,
        originals_google.big_vision_token,
    )
}
# One of each table and of each part that it changes; the others are in tests/parity.
STORED = (
    *("transformers_vit", "transformers_deit", "transformers_dinov2_swiglu"),
    *("transformers_dinov2_registers", "transformers_clip", "transformers_siglip"),
    *("transformers_siglip_classifier", "deit3", "mae", "dino", "dinov2"),
    *("dinov2_registers", "openclip", "openclip_trunk", "vit_jax", "big_vision_siglip"),
)


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    for name in STORED:
        found = ORIGINALS[name]()
        tensors = {k: np.asarray(v, np.float16) for k, v in found.tensors.items()}
        about = {"outputs": found.outputs, "given": json.dumps(found.given)}
        path = OUT / f"{name}.npz"
        images = originals.images().astype(np.float16)
        np.savez_compressed(path, images=images, **about, **tensors)
        print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
