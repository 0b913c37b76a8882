"""Random models of timm, transformers and OpenCLIP: `load` computes what they do.

python -m tools.fuzz_checkpoints --minutes 60
python -m tools.fuzz_checkpoints --minutes 60 --only timm_file,eva_file,open_clip_file

Each is made small, with random arguments and weights, and saved as its own package
saves it. A folder is loaded by nothing but its path. A file without a config is loaded
with what the refusal asks for, until it loads or no answer is true. --outputs 0.1 runs
a tenth of the files whose model has all facts that are true of theirs: compiling takes
most of the time. A difference beyond
rounding, or an error that is no InputError, is printed with the arguments that made it;
the exit status is 1 if there is one. Needs torch, timm, transformers and
open_clip_torch.
"""

import collections
import functools
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
from timm.models import _hub, eva, vision_transformer

import imagepiece_jax
from imagepiece_jax import cli
from imagepiece_jax.common.image_size import sides
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.rotary import Rotary
from imagepiece_jax.weights.infer import Unnamed
from tools import originals, public_models

ONLY = cli.listed("only", [], "[all] kinds of models, of MAKERS")
OUTPUTS = cli.real(
    "outputs", 1.0, "share of files that are run where their facts agree"
)
MINUTES = cli.real("minutes", None, "how long; default: 1")
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
CLASSIFIER = "ForImageClassification"
TEACHER = "ForImageClassificationWithTeacher"
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


PATCH = 4
# Activations by their class in torch or timm, as `gelu` has them.
GELUS = {"GELU": "exact", "GELUTanh": "tanh", "QuickGELU": "quick"}
TIMM_POOLS = {"token": "token", "avg": "mean", "map": "map", "": "none"}


def _sizes(draw):
    """(image size, width, heads, depth): few, since JAX compiles for each anew."""
    size = draw.choice((8, 12, 12, 16, (8, 12), (12, 20), (8, 32)))
    return size, 24, draw.choice((2, 3)), draw.randint(1, 3)


def _drawn(draw, choices, most):
    """Some of the fields, with one of their values."""
    fields = draw.sample([*choices], draw.randint(0, most))
    return {field: draw.choice(choices[field]) for field in fields}


def _state(model, path):
    """Save the state dict of `model` as a file without a config."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path)


def _gelu(module):
    name = type(module).__name__
    tanh = getattr(module, "approximate", "none") == "tanh"
    return "tanh" if name == "GELU" and tanh else GELUS.get(name)


def _truth_of_timm(model):
    """What no tensor of a model of timm shows: {field: its value; None: no such}."""
    block = model.blocks[0]
    attention_pool = getattr(model, "attn_pool", None)
    truth = {"num_heads": block.attn.num_heads, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    truth |= {"norm_eps": block.norm1.eps, "resize": "antialias"}
    truth["image_size"] = model.patch_embed.img_size
    truth["gelu"] = _gelu(block.mlp.act)
    last = getattr(block.mlp, "gate_last", False)
    silu = type(block.mlp.act).__name__ == "SiLU"
    truth["mlp"] = "swiglu" if silu and not last else None
    truth["pool"] = TIMM_POOLS.get(model.global_pool)
    eva_map = type(model) is eva.Eva and model.global_pool == "map"
    truth["pool_include_prefix"] = getattr(model, "pool_include_prefix", eva_map)
    truth["pool_heads"] = getattr(attention_pool, "num_heads", 0)
    truth["prefix_positions"] = not model.no_embed_class
    kinds = (eva.EvaBlockPostNorm, vision_transformer.ResPostBlock)
    truth["post_norm"] = isinstance(block, kinds)
    truth["rotary"] = False
    if rope := getattr(model, "rope", None):
        try:
            truth["rotary"] = public_models.rotary_facts(rope)
        except public_models.Unsupported:
            truth["rotary"] = None
    return truth


def of_timm_file(draw, folder):
    """As `of_timm`, a file of timm's class VisionTransformer and what is true of it."""
    size, width, heads, depth = _sizes(draw)
    fields = {"img_size": size, "patch_size": PATCH, "embed_dim": width}
    fields |= {"depth": depth, "num_heads": heads}
    fields |= {"num_classes": draw.choice((0, 5))}
    fields |= _drawn(draw, VISION_TRANSFORMER, 5)
    if not fields.get("class_token", True) and "global_pool" not in fields:
        fields["global_pool"] = draw.choice(("avg", "map", ""))
    return _timm_file(vision_transformer.VisionTransformer, fields, folder)


def of_eva_file(draw, folder):
    """As `of_timm_file`, of timm's class Eva."""
    size, width, heads, depth = _sizes(draw)
    fields = {"img_size": size, "patch_size": PATCH, "embed_dim": width}
    fields |= {"depth": depth, "num_heads": heads}
    fields |= {"num_classes": draw.choice((0, 5))}
    fields |= _drawn(draw, EVA, 7)
    return _timm_file(eva.Eva, fields, folder)


def _timm_file(kind, fields, folder):
    model = originals.randomize(kind(**fields))
    height, width = model.patch_embed.img_size
    images, outputs = ran(model, (2, height, width, 3))
    path = folder / "weights.pth"
    _state(model, path)
    words = {k: getattr(v, "__name__", v) for k, v in fields.items()}
    return path, _truth_of_timm(model), images, outputs, f"{kind.__name__} {words}"


def of_open_clip_file(draw, folder):
    """As `of_timm_file`, of OpenCLIP's model with both towers."""
    import open_clip

    size, width, heads, depth = _sizes(draw)
    vision = {"image_size": size, "layers": depth, "width": width}
    vision |= {"head_width": width // heads, "patch_size": PATCH}
    vision |= _drawn(draw, OPEN_CLIP, 4)
    text = dict(context_length=8, vocab_size=20, width=16, heads=2, layers=1)
    quick = draw.random() < 0.3
    model = open_clip.CLIP(
        draw.choice((5, 24)),
        open_clip.CLIPVisionCfg(**vision),
        open_clip.CLIPTextCfg(**text),
        quick_gelu=quick,
    )
    tower = originals.randomize(model).visual
    height, width = tower.image_size
    images, outputs = ran(model.encode_image, (2, height, width, 3))
    path = folder / "weights.pth"
    _state(model, path)
    block = tower.transformer.resblocks[0]
    truth = {"num_heads": heads, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    truth |= {"norm_eps": block.ln_1.eps, "resize": "antialias"}
    truth |= {"image_size": tower.image_size, "gelu": _gelu(block.mlp.gelu)}
    pools = {"tok": "token", "avg": "mean", "none": "none"}
    truth |= {"pool": pools[tower.pool_type], "fc_norm": tower.final_ln_after_pool}
    return path, truth, images, outputs, f"OpenCLIP {vision} quick_gelu={quick}"


VISION_TRANSFORMER = {
    "global_pool": ("token", "avg", "avgmax", "max", "map", "", "prr"),
    "mlp_ratio": (2, 4, 2.6667),
    "qkv_bias": (True, False),
    "qk_norm": (True, False),
    "scale_attn_norm": (True, False),
    "scale_mlp_norm": (True, False),
    "proj_bias": (True, False),
    "init_values": (None, 1e-5, 1.0),
    "class_token": (True, False),
    "pos_embed": ("learn", "none"),
    "no_embed_class": (True, False),
    "reg_tokens": (0, 1, 3, 4, 7),
    "pre_norm": (True, False),
    "final_norm": (True, False),
    "fc_norm": (True, False, None),
    "pool_include_prefix": (True, False),
    "dynamic_img_size": (True, False),
    "norm_layer": (
        timm.layers.LayerNorm,
        functools.partial(timm.layers.LayerNorm, eps=0.03),
        timm.layers.RmsNorm,
    ),
    "act_layer": ACTS,
    "block_fn": (
        vision_transformer.Block,
        vision_transformer.ResPostBlock,
        vision_transformer.ParallelScalingBlock,
    ),
    "mlp_layer": (
        timm.layers.Mlp,
        timm.layers.SwiGLU,
        timm.layers.SwiGLUPacked,
        timm.layers.GluMlp,
    ),
}
EVA = {
    "global_pool": ("token", "avg", "avgmax", "max", "map", ""),
    "qkv_bias": (True, False),
    "qkv_fused": (True, False),
    "qk_norm": (True, False),
    "mlp_ratio": (2, 4, 2.6667),
    "swiglu_mlp": (True, False),
    "swiglu_align_to": (0, 8),
    "scale_mlp": (True, False),
    "scale_attn_inner": (True, False),
    "attn_type": ("eva", "rope"),
    "init_values": (None, 1e-5, 1.0),
    "attn_only_layer_scale": (True, False),
    "class_token": (True, False),
    "num_reg_tokens": (0, 1, 4),
    "no_embed_class": (True, False),
    "use_abs_pos_emb": (True, False),
    "use_rot_pos_emb": (True, False),
    "rope_type": ("cat", "mixed", "dinov3"),
    "rope_grid_offset": (0.0, 1.0),
    "rope_grid_indexing": ("ij", "xy"),
    "rope_temperature": (10000.0, 100.0),
    "rope_rotate_half": (True, False),
    "ref_feat_shape": (None, 4),
    "use_post_norm": (True, False),
    "use_pre_transformer_norm": (True, False),
    "use_post_transformer_norm": (True, False, None),
    "use_fc_norm": (True, False, None),
    "attn_pool_num_heads": (None, 1, 2),
    "attn_pool_mlp_ratio": (None, 2.0),
    "norm_layer": (
        timm.layers.LayerNorm,
        functools.partial(timm.layers.LayerNorm, eps=0.03),
    ),
}
OPEN_CLIP = {
    "mlp_ratio": (2.0, 4.0),
    "ls_init_value": (None, 0.1),
    "attentional_pool": (False, True),
    "attn_pooler_heads": (1, 2),
    "no_ln_pre": (True, False),
    "pos_embed_type": ("learnable", "sin_cos_2d"),
    "final_ln_after_pool": (True, False),
    "pool_type": ("tok", "avg", "none"),
    "act_kwargs": (None, {"approximate": "tanh"}),
    "norm_kwargs": (None, {"eps": 0.03}),
    "block_type": (None, "default", "custom"),
    "qk_norm": (True, False),
    "scaled_cosine_attn": (True, False),
    "scale_heads": (True, False),
    "scale_attn_inner": (True, False),
    "scale_attn": (True, False),
    "scale_fc": (True, False),
}
# Those of files are answered what they ask for.
MAKERS = {
    "timm": of_timm,
    "transformers": of_transformers,
    "timm_file": of_timm_file,
    "eva_file": of_eva_file,
    "open_clip_file": of_open_clip_file,
}


def ran(forward, shape):
    """Random images and what a function of torch makes of them, as NumPy arrays."""
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    with torch.no_grad():
        outputs = forward(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    return images, outputs


def verdict(path, fields, images, outputs, runs=True):
    """("equal" | "same facts" | "refused" | "fault", a sentence).

    runs: whether a file is run whose model has all facts of `fields`
    """
    try:
        vit = answered(path, fields)
        if fields and not runs and has_facts(vit, fields):
            return "same facts", ""
        with jax.default_matmul_precision("highest"):
            # Files are of few sizes, for which each operation is compiled once.
            apply = vit.model.apply if fields else jax.jit(vit.model.apply)
            ours = np.asarray(apply(vit.variables, images).logits)
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


def has_facts(vit, truth):
    """Whether a model has all facts that are true of its file."""
    arch = vit.model.arch
    known = dict(truth)
    gated = arch.mlp == "swiglu"
    pool = arch.pool
    heads = vit.model.num_heads
    if gated and pool != "map":
        del known["gelu"]
    ours = vars(arch) | {"num_heads": heads, "rotary": arch.rotary or False}
    ours["pool_heads"] = (arch.pool_heads or heads) if pool == "map" else 0
    ours |= {"image_size": sides(vit.image_size)}
    known["image_size"] = sides(known["image_size"])
    if not gated:
        known.pop("mlp", None)
    if pool in ("token", "none") or not arch.prefix:
        known.pop("pool_include_prefix", None)
    if not (arch.prefix and arch.positions):
        known.pop("prefix_positions", None)
    if known.get("rotary"):
        known["rotary"] = Rotary(**known["rotary"])
    if pool != "mean":
        known.pop("fc_norm", None)
    images = ("mean", "std")
    return all(ours[field] == known[field] for field in known if field not in images)


def answered(path, truth):
    """The model at `path`, with what refusals ask for, of what is true of it.

    Raises the InputError that asks for nothing, or for what is not among these.
    """
    given = {}
    while True:
        try:
            return imagepiece_jax.load(path, **given)
        except InputError as error:
            fields = []
            if "image_size=" in error.hint:
                fields = ["image_size"]
            elif isinstance(error, Unnamed):
                fields = error.value
            asked = {field: truth.get(field) for field in fields}
            if None in asked.values() or not {*asked} - {*given}:
                raise
            given |= asked


def main():
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    folder = pathlib.Path(OUT.value or "runs/fuzz_checkpoints")
    folder.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    counts = collections.Counter()
    sentences = {}
    number = SEED.value
    kinds = ONLY.value or [*MAKERS]
    folders = {*kinds} & {"timm", "transformers"}
    while time.monotonic() - began < 60 * (MINUTES.value or 1.0):
        draw = random.Random(number)
        number += 1
        make = MAKERS[draw.choice(kinds)]
        try:
            *case, what = make(draw, folder)
        except Exception:  # arguments that their own package refuses
            counts["not made"] += 1
            continue
        found, sentence = verdict(*case, runs=draw.random() < OUTPUTS.value)
        counts[found] += 1
        if found == "fault":
            print(f"fault {number - 1}: {what}: {sentence}", flush=True)
        elif found == "refused":
            sentences.setdefault(sentence, what)
        if sum(counts.values()) % 200 == 0:
            if folders:
                jax.clear_caches()
            print(dict(counts), flush=True)
    for sentence, what in sorted(sentences.items()):
        print(f"refused: {sentence}\n    {what}")
    print(dict(counts))
    sys.exit(counts["fault"] > 0)


if __name__ == "__main__":
    cli.run(main)
