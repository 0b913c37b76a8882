"""Random models of timm and transformers: `load` computes what they do, or refuses.

python -m tools.fuzz_checkpoints --minutes 60

Each is made small, with random arguments and weights, saved as its own package saves
it (a folder with config.json, a published tag among them, or a file), loaded by nothing
but its path, or of a file with what no tensor says, and compared. A difference beyond
rounding, or an error that is no InputError, is printed with the arguments that made it;
the exit status is 1 if there is one. Needs torch, timm and transformers.
"""

import collections
import json
import pathlib
import random
import re
import shutil
import sys
import time
import warnings

import jax
import numpy as np
import timm
import torch
import transformers
from timm.models import _hub

import imagepiece_jax
from imagepiece_jax import cli
from imagepiece_jax.errors import InputError
from tools import originals

MINUTES = cli.real("minutes", 1.0, "how long")
SEED = cli.integer("seed", 0, "of the models")
OUT = cli.text(
    "out", None, "[runs/fuzz_checkpoints] folder for the model of the moment"
)
# Relative to the largest output, for each block: products of float32 add up in another
# order, and 1e-5 holds for two blocks of every family in tests/parity.
ROUNDING = 1e-5
NAMES = (
    "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "vit_small_patch16_224.augreg_in1k",
    "vit_base_patch16_224.mae",
    "deit_tiny_patch16_224.fb_in1k",
    "deit_tiny_distilled_patch16_224.fb_in1k",
    "deit3_small_patch16_224.fb_in1k",
    "vit_base_patch16_clip_224.openai",
    "vit_base_patch32_clip_quickgelu_224.openai",
    "vit_base_patch16_siglip_224.webli",
    "vit_small_patch14_dinov2.lvd142m",
    "vit_small_patch14_reg4_dinov2.lvd142m",
    "vit_giant_patch14_dinov2.lvd142m",
    "eva02_tiny_patch14_224.mim_in22k",
    "eva02_base_patch16_clip_224.merged2b",
    "vit_small_patch16_dinov3.lvd1689m",
    "vit_base_patch16_224",
    "vit_so150m_patch16_reg4_map_256",
    "vit_medium_patch16_gap_240.sw_in12k",
)
ACTS = ("gelu", "gelu_tanh", "quick_gelu", "relu", "silu")


def of_timm(draw, folder):
    """A model of timm in `folder`. -> (path, fields of load, images, outputs, what)."""
    name = draw.choice(NAMES)
    patch = int(re.search(r"patch(\d+)", name)[1])
    sides = [patch * draw.randint(1, 4) for _ in range(2)]
    arguments = {"img_size": sides[0] if draw.random() < 0.7 else tuple(sides)}
    arguments["depth"] = draw.randint(1, 3)
    heads = draw.choice((1, 2, 3))
    arguments |= {"embed_dim": heads * draw.choice((8, 12, 16)), "num_heads": heads}
    choices = {
        "num_classes": (0, 1, 5),
        "global_pool": ("token", "avg", "map"),
        "act_layer": ACTS,
        "reg_tokens": (0, 1, 3),
        "class_token": (True, False),
        "no_embed_class": (True, False),
        "init_values": (None, 1e-5, 1.0),
        "qkv_bias": (True, False),
        "pre_norm": (True, False),
        "fc_norm": (True, False, None),
        "final_norm": (True, False),
        "pool_include_prefix": (True, False),
        "mlp_ratio": (2, 4, 2.6667),
        "norm_layer": ("layernorm",),
    }
    for field in draw.sample([*choices], draw.choice((0, 0, 1, 1, 2, 3))):
        arguments[field] = draw.choice(choices[field])
    what = f"{name} {arguments}"
    model = originals.randomize(timm.create_model(name, **arguments))
    height, width = model.patch_embed.img_size
    images, outputs = ran(model, (2, height, width, 3))
    shutil.rmtree(folder, ignore_errors=True)
    _hub.save_for_hf(model, folder, safe_serialization=draw.random() < 0.7)
    if draw.random() < 0.3:  # as older versions of timm wrote it
        path = folder / "config.json"
        config = json.loads(path.read_text())
        config |= config.pop("pretrained_cfg")
        path.write_text(json.dumps(config))
        what += " flat"
    return folder, {}, images, outputs, what


def of_transformers(draw, folder):
    """As `of_timm`, of a model of transformers with its processor."""
    heads = draw.choice((1, 2, 3))
    patch = draw.choice((2, 4, 8))
    side = patch * draw.randint(2, 5)
    sizes = {"hidden_size": heads * draw.choice((8, 12, 16)), "patch_size": patch}
    sizes |= {"num_hidden_layers": draw.randint(1, 3), "num_attention_heads": heads}
    sizes |= {"image_size": side, "intermediate_size": draw.choice((20, 48))}
    kind = draw.choice([*KINDS])
    family, processor, end, forward, choices = KINDS[kind]
    of_config = getattr(transformers, f"{family}Config")
    of_model = getattr(transformers, f"{family}{end}")
    of_processor = getattr(transformers, f"{processor}ImageProcessor")
    fields = {k: draw.choice(v) for k, v in choices.items() if draw.random() < 0.5}
    if "Dinov2" in family:
        sizes["mlp_ratio"] = 2
        del sizes["intermediate_size"]
    what = f"{kind} {sizes | fields}"
    model = originals.randomize(of_model(of_config(**sizes | fields)))
    images, outputs = ran(lambda x: forward(model, x), (2, side, side, 3))
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    square = {"height": side, "width": side}
    of_processor(size=square, crop_size=square).save_pretrained(folder)
    return folder, {}, images, outputs, what


COMMON = {
    "hidden_act": ("gelu", "gelu_new", "quick_gelu", "gelu_pytorch_tanh", "relu"),
    "layer_norm_eps": (1e-12, 1e-6, 1e-5, 0.03),
}
SCALED = COMMON | {"qkv_bias": (True, False), "layerscale_value": (1.0, 0.1)}
SCALED |= {"use_swiglu_ffn": (True, False)}
HEADED = COMMON | {"qkv_bias": (True, False), "num_labels": (1, 5)}
REGISTERS = SCALED | {"num_register_tokens": (0, 1, 4)}
ROTARY = COMMON | {"num_register_tokens": (0, 2), "use_gated_mlp": (True, False)}
ROTARY |= {"rope_theta": (100.0, 50.0), "key_bias": (True, False)}
CLASSIFIER, TEACHER = "ForImageClassification", "ForImageClassificationWithTeacher"
# Starts of the names of a config and a processor; the model's end, what it gives of
# images; fields of the config.
KINDS = {
    "vit": ("ViT", "ViT", CLASSIFIER, originals.logits, HEADED),
    "deit": ("DeiT", "DeiT", TEACHER, originals.logits, HEADED),
    "dinov2": ("Dinov2", "Bit", "Model", originals.pooler, SCALED),
    "dinov2_with_registers": (
        *("Dinov2WithRegisters", "Bit", "Model", originals.pooler, REGISTERS),
    ),
    "clip_vision_model": ("CLIPVision", "CLIP", "Model", originals.pooler, COMMON),
    "siglip_vision_model": (
        *("SiglipVision", "Siglip", "Model", originals.pooler, COMMON),
    ),
    "dinov3_vit": ("DINOv3ViT", "DINOv3ViT", "Model", originals.pooler, ROTARY),
}


def ran(forward, shape):
    """Random images and what a function of torch makes of them, as NumPy arrays."""
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    with torch.no_grad():
        outputs = forward(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    return images, outputs


def verdict(path, fields, images, outputs):
    """("equal" | "refused" | "fault", a sentence)."""
    try:
        vit = imagepiece_jax.load(path, **fields)
        with jax.default_matmul_precision("highest"):
            ours = np.asarray(jax.jit(vit.model.apply)(vit.variables, images).logits)
    except InputError as error:
        return "refused", f"{error.field} {error.problem}; {error.allowed}"[:110]
    except Exception as error:
        return "fault", f"{type(error).__name__}: {error}"
    if ours.shape != outputs.shape:
        return "fault", f"outputs of shape {ours.shape} for {outputs.shape}"
    apart = np.abs(ours - outputs).max() / np.abs(outputs).max()
    if not apart < ROUNDING * (1 + len(vit.model.plan)):
        return "fault", f"outputs differ by {apart:.2g} of the largest"
    return "equal", ""


def main():
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    folder = pathlib.Path(OUT.value or "runs/fuzz_checkpoints")
    folder.parent.mkdir(parents=True, exist_ok=True)
    began, counts, sentences = time.monotonic(), collections.Counter(), {}
    number = SEED.value
    while time.monotonic() - began < 60 * MINUTES.value:
        draw, number = random.Random(number), number + 1
        make = of_timm if draw.random() < 0.6 else of_transformers
        try:
            *case, what = make(draw, folder)
        except Exception:  # arguments that their own package refuses
            counts["not made"] += 1
            continue
        found, sentence = verdict(*case)
        counts[found] += 1
        if found == "fault":
            print(f"fault {number - 1}: {what}: {sentence}", flush=True)
        elif found == "refused":
            sentences.setdefault(sentence, what)
        if sum(counts.values()) % 200 == 0:
            jax.clear_caches()
            print(dict(counts), flush=True)
    for sentence, what in sorted(sentences.items()):
        print(f"refused: {sentence}\n    {what}")
    print(dict(counts))
    sys.exit(counts["fault"] > 0)


if __name__ == "__main__":
    cli.run(main)
