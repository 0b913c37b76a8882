"""Small models of other projects, with checkpoints and outputs.

Random weights let each part show. Checkpoints have their project's names: of
transformers, timm, original repositories that rename timm's or transformers' models,
OpenAI's CLIP and OpenCLIP, and Google's vit_jax and big_vision. Needs torch, timm and
transformers.
"""

import collections
import dataclasses
import functools
import pathlib
import re
import tempfile
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import timm.layers
import timm.models.vision_transformer as timm_vit
import torch
import transformers
from flax import linen, traverse_util
from torch import nn

from imagepiece_jax.models import registry
from imagepiece_jax.models.config import ViTConfig

WIDTH = 24
DEPTH = 2
HEADS = 3
HIDDEN = 48
CLASSES = 5
PATCH = 4
SIDE = 16
BATCH = 2
GRID = (SIDE // PATCH) ** 2


@dataclasses.dataclass(frozen=True)
class Original:
    """A checkpoint, and the model's outputs for `images()`.

    tensors: by the project's names
    outputs: logits, or pooled features
    config: of the model
    also: the same checkpoint by other names
    """

    tensors: Mapping[str, np.ndarray]
    outputs: np.ndarray
    config: ViTConfig
    also: tuple[Mapping[str, np.ndarray], ...] = ()


def images():
    """[BATCH, SIDE, SIDE, 3] float32, exact in float16."""
    noise = np.random.default_rng(1).normal(size=(BATCH, SIDE, SIDE, 3))
    return noise.astype(np.float16).astype(np.float32)


def randomize(model):
    """Draw weights of trained magnitude in place, exact in float16."""
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
    """A state dict as copied NumPy arrays."""
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


def saved(model):
    """The tensors of transformers' saved file."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return safetensors.numpy.load_file(pathlib.Path(folder) / "model.safetensors")


def noise(*shape):
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float16)


def config_like(name, **changes):
    """The config of a small model with the parts of `name`."""
    sizes = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
    sizes |= {"mlp_ratio": HIDDEN / WIDTH, "patch_size": PATCH}
    config = registry.model_config(name).with_preprocessing(image_size=SIDE)
    return dataclasses.replace(config, **sizes | changes)


# transformers


def config(kind, **fields):
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH}
    sizes |= {"num_attention_heads": HEADS, "image_size": SIDE, "patch_size": PATCH}
    if "Dinov2" in kind.__name__:
        sizes["mlp_ratio"] = HIDDEN // WIDTH
    else:
        sizes["intermediate_size"] = HIDDEN
    return kind(**sizes | fields)


def of_transformers(kind, config, name, output, **changes):
    """output: a field of the model's outputs, or a function of model and images"""
    model = randomize(kind(config))
    if isinstance(output, str):
        outputs = run(lambda x: getattr(model(x), output))
    else:
        outputs = run(lambda x: output(model, x))
    ours = config_like(name, **changes)
    return Original(saved(model), outputs, ours, also=(memory(model),))


def first_token(model, x):
    return model(x).last_hidden_state[:, 0]


NORM = {"layer_norm_eps": 1e-6}
HEADED = NORM | {"num_labels": CLASSES}
POOLED = "pooler_output"
SWIGLU = {"use_swiglu_ffn": True}
CLASSIFIER = "ForImageClassification"
TEACHER = "ForImageClassificationWithTeacher"
# Start and end of a model's name, its config, timm's name, and its output.
TRANSFORMERS = {
    "vit": ("ViT", CLASSIFIER, HEADED, "deit_s", "logits"),
    # It has a pooler, which we leave out, and no classifier.
    "vit_features": ("ViT", "Model", NORM, "deit_s", first_token),
    "deit": ("DeiT", TEACHER, HEADED, "deit_small_distilled_patch16_224", "logits"),
    "dinov2": ("Dinov2", "Model", {}, "vit_small_patch14_dinov2", POOLED),
    "dinov2_swiglu": ("Dinov2", "Model", SWIGLU, "vit_giant_patch14_dinov2", POOLED),
    "dinov2_registers": (
        *("Dinov2WithRegisters", "Model", {"num_register_tokens": 4}),
        *("vit_small_patch14_reg4_dinov2", POOLED),
    ),
    "clip_projection": (
        *("CLIPVision", "ModelWithProjection", {"projection_dim": CLASSES}),
        *("vit_base_patch32_clip_224.openai", "image_embeds"),
    ),
}


def named_in_transformers(key):
    start, end, fields, name, output = TRANSFORMERS[key]
    sizes = config(getattr(transformers, f"{start}Config"), **fields)
    kind = getattr(transformers, start + end)
    # two thirds of HIDDEN, in eights
    changes = {"mlp_ratio": 32 / WIDTH} if fields is SWIGLU else {}
    return of_transformers(kind, sizes, name, output, **changes)


TEXT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT |= {"intermediate_size": 8, "vocab_size": 9, "max_position_embeddings": 4}
TEXT |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


def clip_config(**fields):
    return config(transformers.CLIPVisionConfig, projection_dim=CLASSES, **fields)


def transformers_clip():
    """Both towers; OpenCLIP's models have the exact GELU there."""
    vision = clip_config(hidden_act="gelu").to_dict()
    towers = {"text_config": TEXT, "vision_config": vision}
    sizes = transformers.CLIPConfig(**towers, projection_dim=CLASSES)

    def embedding(model, x):
        return model.visual_projection(model.vision_model(x).pooler_output)

    name = "vit_base_patch32_clip_224.laion2b"
    return of_transformers(transformers.CLIPModel, sizes, name, embedding)


def transformers_clip_vision():
    """Until version 5 its file has "vision_model." in front of all names."""
    name = "vit_base_patch32_clip_224.openai"
    kind = transformers.CLIPVisionModel
    original = of_transformers(kind, clip_config(), name, POOLED)
    old = {f"vision_model.{name}": tensor for name, tensor in original.tensors.items()}
    old["vision_model.embeddings.position_ids"] = np.arange(GRID + 1)[None]
    return dataclasses.replace(original, also=(*original.also, old))


def siglip_config(**fields):
    vision = config(transformers.SiglipVisionConfig).to_dict()
    return transformers.SiglipConfig(text_config=TEXT, vision_config=vision, **fields)


def transformers_siglip():
    """Both towers. SigLIP 2 of a fixed size is the same model."""

    def pooled(model, x):
        return model.vision_model(x).pooler_output

    kind = transformers.SiglipModel
    return of_transformers(kind, siglip_config(), "vit_base_patch16_siglip_224", pooled)


def transformers_siglip_classifier():
    """It reads the mean of the patches, and ignores its attention pool."""
    kind = transformers.SiglipForImageClassification
    name = "vit_base_patch16_siglip_gap_224"
    return of_transformers(kind, siglip_config(num_labels=CLASSES), name, "logits")


# timm, and original repositories that rename timm's models


def of_timm(**fields):
    sizes = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH}
    sizes |= {"num_heads": HEADS, "mlp_ratio": HIDDEN / WIDTH, "num_classes": 0}
    return randomize(timm_vit.VisionTransformer(**sizes | fields))


def timm_swiglu():
    """DINOv2's giant, with gate and value in one layer."""
    layers = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": nn.SiLU}
    model = of_timm(init_values=1e-5, **layers)
    config = config_like("vit_giant_patch14_dinov2", mlp_ratio=HIDDEN / 2 / WIDTH)
    return Original(memory(model), run(model), config)


def deit3():
    model = of_timm(init_values=1e-6, no_embed_class=True, num_classes=CLASSES)
    # It has ".gamma_1" and ".gamma_2".
    renamed = functools.partial(re.sub, r"\.ls([12])\.gamma", r".gamma_\1")
    tensors = {renamed(name): tensor for name, tensor in memory(model).items()}
    return Original(tensors, run(model), config_like("deit3_small_patch16_224.fb_in1k"))


def mae():
    """The encoder of pre-training; the decoder and the mask token are left out."""
    model = of_timm()
    tensors = memory(model) | {"mask_token": noise(1, 1, 8)}
    tensors |= {"decoder_embed.weight": noise(8, WIDTH), "decoder_pred.bias": noise(48)}
    tensors |= {"decoder_pos_embed": noise(1, GRID + 1, 8)}
    tensors |= {"decoder_blocks.0.attn.qkv.weight": noise(24, 8)}
    tensors |= {"decoder_norm.weight": noise(8)}
    return Original(tensors, run(model), config_like("vit_base_patch16_224.mae"))


def mae_finetuned():
    """The head reads the mean of the patches through a norm of its own."""
    model = of_timm(global_pool="avg", num_classes=CLASSES)
    return Original(memory(model), run(model), config_like("eva_large_patch14_196"))


def dino():
    """A student of parallel training, with the head of self-distillation."""
    model = of_timm()
    tensors = {f"module.backbone.{k}": v for k, v in memory(model).items()}
    tensors["module.head.mlp.0.weight"] = noise(8, WIDTH)
    tensors["module.head.last_layer.weight_g"] = noise(9, 1)
    return Original(tensors, run(model), config_like("vit_small_patch16_224.dino"))


# DINOv2's names, beside those of transformers' models in memory.
DINOV2 = (
    ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.", ""),
    ("encoder.layer.", "blocks."),
    ("attention.o_proj.", "attn.proj."),
    *((f"attention.{part}_proj.", "attn.qkv.") for part in "qkv"),
    ("mlp.gate_proj.", "mlp.w12."),
    ("mlp.up_proj.", "mlp.w12."),
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
    ("mlp.down_proj.", "mlp.w3."),
    ("layernorm.", "norm."),
)


def as_dinov2(tensors):
    """Tensors of transformers' DINOv2 by the names of the original."""
    parts = collections.defaultdict(list)  # q, k and v, or gate and up, are one
    for name, tensor in tensors.items():
        for theirs, ours in DINOV2:
            name = name.replace(theirs, ours)
        parts[name].append(tensor)
    return {name: np.concatenate(tensors) for name, tensors in parts.items()}


def dinov2():
    """The giant's layers; also in chunks of blocks, as its training saves them."""
    original = named_in_transformers("dinov2_swiglu")
    tensors = as_dinov2(original.also[0])
    chunks = {k.replace("blocks.", "blocks.0."): v for k, v in tensors.items()}
    return dataclasses.replace(original, tensors=tensors, also=(chunks,))


def dinov2_registers():
    """Its registers; also as its training saves a teacher."""
    original = named_in_transformers("dinov2_registers")
    tensors = as_dinov2(original.also[0])
    teacher = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
    teacher["dino_head.mlp.0.weight"] = noise(8, WIDTH)
    teacher["ibot_head.mlp.0.bias"] = noise(8)
    return dataclasses.replace(original, tensors=tensors, also=(teacher,))


# CLIP's image tower, with the modules and names of OpenAI's clip/model.py and of
# open_clip/transformer.py (Radford et al. 2021).


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class ResidualAttentionBlock(nn.Module):
    def __init__(self, width, heads, gelu):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1 = nn.LayerNorm(width)
        first = nn.Linear(width, HIDDEN)
        last = nn.Linear(HIDDEN, width)
        layers = {"c_fc": first, "gelu": gelu, "c_proj": last}
        self.mlp = nn.Sequential(collections.OrderedDict(layers))
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class ClipTower(nn.Module):
    def __init__(self, width, heads, gelu):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, PATCH, PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(GRID + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = nn.Module()
        blocks = [ResidualAttentionBlock(width, heads, gelu) for _ in range(DEPTH)]
        self.transformer.resblocks = nn.Sequential(*blocks)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.zeros(width, CLASSES))

    def forward(self, x):
        x = self.conv1(x).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(x), 1, -1)
        x = torch.cat([first, x], dim=1) + self.positional_embedding
        x = self.transformer.resblocks(self.ln_pre(x))
        return self.ln_post(x[:, 0]) @ self.proj


CLIP_TEXT = {
    "token_embedding.weight": noise(9, 8),
    "positional_embedding": noise(4, 8),
    "transformer.resblocks.0.attn.in_proj_weight": noise(24, 8),
    "ln_final.weight": noise(8),
    "text_projection": noise(8, CLASSES),
    "logit_scale": noise(),
}


def visual(model, start="visual."):
    return {f"{start}{name}": tensor for name, tensor in memory(model).items()}


def openai_clip():
    """OpenAI's head has 64 channels, and its file three numbers of its own."""
    model = randomize(ClipTower(64, 1, QuickGELU()))
    numbers = ("input_resolution", "context_length", "vocab_size")
    tensors = visual(model) | CLIP_TEXT | dict.fromkeys(numbers, noise())
    sizes = {"embed_dim": 64, "num_heads": 1, "mlp_ratio": HIDDEN / 64}
    config = config_like("vit_base_patch32_clip_224.openai", **sizes)
    return Original(tensors, run(model), config)


def openclip():
    """Both towers; also as parallel training saves them."""
    model = randomize(ClipTower(WIDTH, HEADS, nn.GELU()))
    config = config_like("vit_base_patch32_clip_224.laion2b")
    parallel = {f"module.{k}": v for k, v in (visual(model) | CLIP_TEXT).items()}
    return Original(visual(model) | CLIP_TEXT, run(model), config, also=(parallel,))


def openclip_trunk():
    """timm's tower, with a projection beside it."""
    trunk = of_timm()
    project = randomize(nn.Linear(WIDTH, CLASSES, bias=False))
    text = {f"text.{name}": tensor for name, tensor in CLIP_TEXT.items()}
    tensors = visual(trunk, "visual.trunk.") | text | {"logit_scale": noise()}
    tensors["visual.head.proj.weight"] = memory(project)["weight"]
    return Original(tensors, run(lambda x: project(trunk(x))), config_like("deit_s"))


# Vision transformers in Flax, with the names of google-research/vision_transformer and
# google-research/big_vision (Dosovitskiy et al. 2021, Zhai et al. 2023). Checkpoints
# have the shapes of `init`, with random values.

# Numbers of a block's four modules.
LINEN = (0, 0, 1, 0)
BEFORE = (0, 1, 2, 3)


class MlpBlock(linen.Module):
    @linen.compact
    def __call__(self, x):
        hidden = linen.gelu(linen.Dense(HIDDEN)(x))  # Dense_0: it is made first
        return linen.Dense(x.shape[-1])(hidden)


class GoogleBlock(linen.Module):
    numbers: tuple[int, ...]

    @linen.compact
    def __call__(self, x):
        kinds = "LayerNorm", "MultiHeadDotProductAttention", "LayerNorm", "MlpBlock"
        names = [f"{k}_{i}" for k, i in zip(kinds, self.numbers, strict=True)]
        y = linen.LayerNorm(name=names[0])(x)
        x = x + linen.MultiHeadDotProductAttention(HEADS, name=names[1])(y, y)
        return x + MlpBlock(name=names[3])(linen.LayerNorm(name=names[2])(x))


class Encoder(linen.Module):
    numbers: tuple[int, ...]
    positions: bool  # in here, as in vit_jax

    @linen.compact
    def __call__(self, x):
        if self.positions:
            x = AddPositions(name="posembed_input")(x)
        for index in range(DEPTH):
            x = GoogleBlock(self.numbers, name=f"encoderblock_{index}")(x)
        return linen.LayerNorm(name="encoder_norm")(x)


class AddPositions(linen.Module):
    @linen.compact
    def __call__(self, x):
        shape = (1, *x.shape[1:])
        return x + self.param("pos_embedding", linen.initializers.normal(), shape)


class MAPHead(linen.Module):
    @linen.compact
    def __call__(self, x):
        probe = self.param("probe", linen.initializers.normal(), (1, 1, x.shape[-1]))
        probe = jnp.tile(probe, (len(x), 1, 1))
        x = linen.MultiHeadDotProductAttention(HEADS)(probe, x)
        y = linen.LayerNorm()(x)
        return (x + MlpBlock()(y))[:, 0]


class GoogleViT(linen.Module):
    """pool: "tok", "gap" or "map", as in big_vision."""

    pool: str
    numbers: tuple[int, ...] = LINEN
    positions: bool = False
    classes: int = CLASSES

    @linen.compact
    def __call__(self, x):
        sides = (PATCH, PATCH)
        x = linen.Conv(WIDTH, sides, sides, padding="VALID", name="embedding")(x)
        x = x.reshape(len(x), -1, WIDTH)
        normal = linen.initializers.normal()
        if not self.positions:
            x = x + self.param("pos_embedding", normal, (1, GRID, WIDTH))
        if self.pool == "tok":
            first = self.param("cls", normal, (1, 1, WIDTH))
            x = jnp.concatenate([jnp.tile(first, (len(x), 1, 1)), x], axis=1)
        x = Encoder(self.numbers, self.positions, name="Transformer")(x)
        if self.pool == "map":
            x = MAPHead(name="MAPHead_0")(x)
        else:
            x = x[:, 0] if self.pool == "tok" else x.mean(1)
        return linen.Dense(self.classes, name="head")(x) if self.classes else x


def random_tensors(model):
    """{path: value} of trained magnitude, exact in float16."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), images())["params"]
    rng = np.random.default_rng(0)
    out = {}
    for path, leaf in traverse_util.flatten_dict(shapes, sep="/").items():
        value = rng.normal(size=np.shape(leaf))
        kind = path.rpartition("/")[2]
        if kind == "scale":
            value = 1 + 0.3 * value
        elif kind == "kernel":
            is_split = path.split("/")[-2] in ("query", "key", "value")  # [D, heads, d]
            value = value / np.prod(np.shape(leaf)[: 1 if is_split else -1]) ** 0.5
        else:
            value = (0.3 if kind == "bias" else 0.5) * value
        out[path] = value.astype(np.float16).astype(np.float32)
    return out


def of_google(model, name, start="", more=()):
    """The model with its parameters under `start`, beside unused tensors."""
    tensors = random_tensors(model)
    params = traverse_util.unflatten_dict(tensors, sep="/")
    with jax.default_matmul_precision("highest"):
        outputs = np.asarray(model.apply({"params": params}, images()))
    tensors = {f"{start}{path}": value for path, value in tensors.items()}
    # Flax's nn.gelu is the tanh approximation; not all of timm's models have it.
    config = config_like(name).with_arch(gelu="tanh")
    return Original(tensors | dict(more), outputs, config)


def vit_jax():
    """As released, with old Flax's numbers; also as fine-tuning saves it."""
    name = "deit_s"  # its parts
    original = of_google(GoogleViT("tok", BEFORE, positions=True), name)
    also = of_google(GoogleViT("tok", positions=True), name, "opt/target/")
    also.tensors["opt/state/step"] = noise()
    return dataclasses.replace(original, also=(also.tensors,))


GOOGLE_TEXT = {
    "params/txt/Embed_0/embedding": noise(9, 8),
    "params/txt/Encoder_0/encoderblock_0/LayerNorm_0/scale": noise(8),
    "params/t": noise(1),
    "params/b": noise(1),
}


def big_vision_siglip():
    """Both towers; also with stacked blocks, as a scan has them."""
    name = "vit_base_patch16_siglip_224"
    original = of_google(GoogleViT("map", classes=0), name, "params/img/", GOOGLE_TEXT)
    scan = dict(original.tensors)
    for path in original.tensors:
        if "encoderblock_0" in path and "txt" not in path:
            paths = [path.replace("block_0", f"block_{i}") for i in range(DEPTH)]
            stacked = np.stack([scan.pop(block_path) for block_path in paths])
            scan[path.replace("block_0", "block")] = stacked
    return dataclasses.replace(original, also=(scan,))


def big_vision_mean():
    """A classifier of the mean of the patches, without a class token."""
    name = "vit_base_patch16_siglip_gap_224"
    return of_google(GoogleViT("gap"), name, "params/")


def big_vision_token():
    """Positions precede the class token; until 2022 the encoder had them."""
    original = of_google(GoogleViT("tok"), "flexivit_base")
    old = dict(original.tensors)
    old["Transformer/pos_embedding"] = old.pop("pos_embedding")
    return dataclasses.replace(original, also=(old,))


MAKERS = (transformers_clip, transformers_clip_vision, transformers_siglip)
MAKERS += (transformers_siglip_classifier, timm_swiglu, deit3, mae, mae_finetuned, dino)
MAKERS += (dinov2, dinov2_registers, openai_clip, openclip, openclip_trunk, vit_jax)
MAKERS += (big_vision_siglip, big_vision_mean, big_vision_token)
ORIGINALS = {make.__name__: make for make in MAKERS}
for key in TRANSFORMERS:
    ORIGINALS[f"transformers_{key}"] = functools.partial(named_in_transformers, key)
