"""Small models of transformers and timm, with checkpoints and what they compute.

Weights are random, so that each part shows. Checkpoints have the names that a project
gives them: those of transformers and timm, and those of original repositories whose
models are as timm's or transformers' by other names. Needs torch, timm, transformers.
"""

import collections
import dataclasses
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy
import timm.layers
import timm.models.vision_transformer as timm_vit
import torch
import transformers
from torch import nn

WIDTH, DEPTH, HEADS, HIDDEN, CLASSES = 24, 2, 3, 48, 5
PATCH, SIDE, BATCH = 4, 16, 2
GRID = (SIDE // PATCH) ** 2
HALF = (0.5, 0.5, 0.5)


@dataclasses.dataclass(frozen=True)
class Original:
    """A checkpoint and what the model computes of `images()`.

    tensors: by the project's names; outputs: logits, or pooled features; given: fields
    that neither tensors nor layout tell; also: the same checkpoint by other names.
    """

    tensors: Mapping[str, np.ndarray]
    outputs: np.ndarray
    given: Mapping[str, Any]
    also: tuple[Mapping[str, np.ndarray], ...] = ()


def images():
    """[BATCH, SIDE, SIDE, 3] float32, of values that float16 has."""
    noise = np.random.default_rng(1).normal(size=(BATCH, SIDE, SIDE, 3))
    return noise.astype(np.float16).astype(np.float32)


def randomize(model):
    """Random weights of trained magnitude in place, of values that float16 has."""
    rng = torch.Generator().manual_seed(0)
    for module in model.modules():
        for name, leaf in module.named_parameters(recurse=False):
            noise = torch.randn(leaf.shape, generator=rng)
            if isinstance(module, nn.LayerNorm) and name == "weight":
                noise = 1 + 0.3 * noise
            elif isinstance(module, nn.Linear | nn.Conv2d) and name == "weight":
                noise = noise / leaf[0].numel() ** 0.5
            elif name in ("in_proj_weight", "proj"):
                noise = noise / WIDTH**0.5
            elif name in ("gamma", "lambda1"):
                noise = 0.5 + 0.3 * noise
            else:
                noise = (0.3 if name.endswith("bias") else 0.5) * noise
            leaf.data.copy_(noise.half())
    return model.eval()


def run(forward):
    """The outputs of a function of torch for `images()`."""
    with torch.no_grad():
        return forward(torch.from_numpy(images()).permute(0, 3, 1, 2)).numpy()


def memory(model):
    """A state dict as NumPy arrays of their own."""
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


def saved(model):
    """The tensors of the file that transformers writes."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return safetensors.numpy.load_file(pathlib.Path(folder) / "model.safetensors")


def noise(*shape):
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float16)


def given(name, images=HALF, heads=HEADS):
    """Fields of a model that is as `name` but for its size."""
    found = {"name": name, "num_heads": heads, "mean": images, "std": images}
    return {k: v for k, v in found.items() if v is not None}


# transformers


def config(kind, **fields):
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH}
    sizes |= {"num_attention_heads": HEADS, "image_size": SIDE, "patch_size": PATCH}
    if "Dinov2" in kind.__name__:
        sizes["mlp_ratio"] = HIDDEN // WIDTH
    else:
        sizes["intermediate_size"] = HIDDEN
    return kind(**sizes | fields)


def of_transformers(kind, config, name, pooled, **options):
    model = randomize(kind(config))
    outputs = run(lambda x: pooled(model, x))
    return Original(
        saved(model), outputs, given(name, **options), also=(memory(model),)
    )


def logits(model, x):
    return model(x).logits


def pooler(model, x):
    return model(x).pooler_output


def transformers_vit():
    found = config(transformers.ViTConfig, num_labels=CLASSES, layer_norm_eps=1e-6)
    kind = transformers.ViTForImageClassification
    return of_transformers(kind, found, "deit_s", logits)


def transformers_vit_features():
    """With a pooler, which we leave out, and without a classifier."""
    found = config(transformers.ViTConfig, layer_norm_eps=1e-6)
    first = lambda model, x: model(x).last_hidden_state[:, 0]  # noqa: E731
    return of_transformers(transformers.ViTModel, found, "deit_s", first)


def transformers_deit():
    found = config(transformers.DeiTConfig, num_labels=CLASSES, layer_norm_eps=1e-6)
    kind = transformers.DeiTForImageClassificationWithTeacher
    return of_transformers(kind, found, "deit_small_distilled_patch16_224", logits)


def transformers_dinov2():
    found = config(transformers.Dinov2Config)
    name = "vit_small_patch14_dinov2"
    return of_transformers(transformers.Dinov2Model, found, name, pooler)


def transformers_dinov2_swiglu():
    found = config(transformers.Dinov2Config, use_swiglu_ffn=True)
    name = "vit_giant_patch14_dinov2"
    return of_transformers(transformers.Dinov2Model, found, name, pooler)


def transformers_dinov2_registers():
    found = config(transformers.Dinov2WithRegistersConfig, num_register_tokens=4)
    kind, name = transformers.Dinov2WithRegistersModel, "vit_small_patch14_reg4_dinov2"
    return of_transformers(kind, found, name, pooler)


TEXT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT |= {"intermediate_size": 8, "vocab_size": 9, "max_position_embeddings": 4}
TEXT |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


def clip_config(**fields):
    return config(transformers.CLIPVisionConfig, projection_dim=CLASSES, **fields)


def transformers_clip():
    """Both towers; OpenCLIP's models have the exact GELU there."""
    vision = clip_config(hidden_act="gelu").to_dict()
    found = transformers.CLIPConfig(
        text_config=TEXT, vision_config=vision, projection_dim=CLASSES
    )

    def embedding(model, x):
        return model.visual_projection(model.vision_model(x).pooler_output)

    name = "vit_base_patch32_clip_224.laion2b"
    return of_transformers(transformers.CLIPModel, found, name, embedding)


def transformers_clip_projection():
    found, kind = clip_config(), transformers.CLIPVisionModelWithProjection
    name = "vit_base_patch32_clip_224.openai"
    return of_transformers(kind, found, name, lambda model, x: model(x).image_embeds)


def transformers_clip_vision():
    """Its file has "vision_model." in front of all names, until version 5."""
    name, kind = "vit_base_patch32_clip_224.openai", transformers.CLIPVisionModel
    found = of_transformers(kind, clip_config(), name, pooler)
    old = {f"vision_model.{name}": tensor for name, tensor in found.tensors.items()}
    old["vision_model.embeddings.position_ids"] = np.arange(GRID + 1)[None]
    return dataclasses.replace(found, also=(*found.also, old))


def siglip_config(**fields):
    vision = config(transformers.SiglipVisionConfig).to_dict()
    return transformers.SiglipConfig(text_config=TEXT, vision_config=vision, **fields)


def transformers_siglip():
    """Both towers. SigLIP 2 of a fixed size is the same model."""

    def pooled(model, x):
        return model.vision_model(x).pooler_output

    name, kind = "vit_base_patch16_siglip_224", transformers.SiglipModel
    return of_transformers(kind, siglip_config(), name, pooled)


def transformers_siglip_classifier():
    """It reads the mean of the patches, and has an attention pool that it ignores."""
    kind = transformers.SiglipForImageClassification
    name = "vit_base_patch16_siglip_gap_224"
    return of_transformers(kind, siglip_config(num_labels=CLASSES), name, logits)


# timm, and original repositories whose models are as timm's by other names


def of_timm(**fields):
    sizes = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH}
    sizes |= {"num_heads": HEADS, "mlp_ratio": HIDDEN / WIDTH, "num_classes": 0}
    return randomize(timm_vit.VisionTransformer(**sizes | fields))


def timm_swiglu():
    """DINOv2's giant, whose layer has gate and value in one."""
    layers = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": nn.SiLU}
    model = of_timm(init_values=1e-5, **layers)
    return Original(memory(model), run(model), given("vit_giant_patch14_dinov2"))


def deit3():
    model = of_timm(init_values=1e-6, no_embed_class=True, num_classes=CLASSES)
    tensors = {
        name.replace(".ls1.gamma", ".gamma_1").replace(".ls2.gamma", ".gamma_2"): tensor
        for name, tensor in memory(model).items()
    }
    return Original(tensors, run(model), given("deit3_small_patch16_224"))


def mae():
    """The encoder of pre-training; the decoder and the mask token are left out."""
    model = of_timm()
    more = {
        "mask_token": noise(1, 1, 8),
        "decoder_embed.weight": noise(8, WIDTH),
        "decoder_pos_embed": noise(1, GRID + 1, 8),
        "decoder_blocks.0.attn.qkv.weight": noise(24, 8),
        "decoder_norm.weight": noise(8),
        "decoder_pred.bias": noise(48),
    }
    return Original(memory(model) | more, run(model), given("vit_base_patch16_224.mae"))


def mae_finetuned():
    """The head reads the mean of the patches through a norm of its own."""
    model = of_timm(global_pool="avg", num_classes=CLASSES)
    return Original(memory(model), run(model), given("eva_large_patch14_196"))


def dino():
    """A student of parallel training, with the head of self-distillation."""
    model = of_timm()
    tensors = {f"module.backbone.{k}": v for k, v in memory(model).items()}
    tensors["module.head.mlp.0.weight"] = noise(8, WIDTH)
    tensors["module.head.last_layer.weight_g"] = noise(9, 1)
    return Original(tensors, run(model), given("vit_small_patch16_224.dino"))


# DINOv2's names, beside those of transformers' models in memory.
DINOV2 = (
    ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.", ""),
    ("encoder.layer.", "blocks."),
    ("attention.o_proj.", "attn.proj."),
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
    ("mlp.down_proj.", "mlp.w3."),
    ("layernorm.", "norm."),
)


def as_dinov2(tensors):
    """Tensors of transformers' DINOv2 by the names of the original."""
    out, groups = {}, collections.defaultdict(list)
    for name, tensor in tensors.items():
        for theirs, ours in DINOV2:
            name = name.replace(theirs, ours)
        for part in ("attention.q_proj", "attention.k_proj", "attention.v_proj"):
            if part in name:
                groups[name.replace(part, "attn.qkv")].append(tensor)
                break
        else:
            if "gate_proj" in name or "up_proj" in name:
                name = name.replace("gate_proj", "w12").replace("up_proj", "w12")
                groups[name].append(tensor)
            else:
                out[name] = tensor
    return out | {name: np.concatenate(parts) for name, parts in groups.items()}


def dinov2():
    """The giant's layers, and as its training saves them, in chunks of blocks."""
    found = transformers_dinov2_swiglu()
    tensors = as_dinov2(found.also[0])
    chunks = {k.replace("blocks.", "blocks.0."): v for k, v in tensors.items()}
    return dataclasses.replace(found, tensors=tensors, also=(chunks,))


def dinov2_registers():
    """And as a teacher of training is saved."""
    found = transformers_dinov2_registers()
    tensors = as_dinov2(found.also[0])
    teacher = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
    heads = {
        "dino_head.mlp.0.weight": noise(8, WIDTH),
        "ibot_head.mlp.0.bias": noise(8),
    }
    return dataclasses.replace(found, tensors=tensors, also=(teacher | heads,))
