"""Names and shapes of the largest public models: python -m tools.whole_models

Writes tests/fixtures/whole_models.json from timm's models, which are built without
memory. Needs torch and timm.
"""

import json
import pathlib
import re

import timm
import torch

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "tests" / "fixtures" / "whole_models.json"
OPENCLIP = "mlfoundations/open_clip, docs/model_profile.csv"
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
    "eva02_large_patch14_448.mim_m38m_ft_in22k_in1k": (
        304e6,
        "EVA-02, arXiv:2303.11331, without head",
    ),
    "vit_7b_patch16_dinov3.lvd1689m": (6716e6, "facebookresearch/dinov3"),
}


def main():
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
    OUT.write_text("{\n" + ",\n".join(rows) + "\n}\n")


if __name__ == "__main__":
    main()
