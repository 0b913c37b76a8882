"""CLIP's image tower in torch as OpenAI and OpenCLIP have it, with their checkpoints.

Radford et al. 2021; the modules and their names are those of clip/model.py and of
open_clip/transformer.py, which is not needed.
"""

import collections

import torch
from torch import nn

from tools.originals import (
    CLASSES,
    DEPTH,
    GRID,
    HEADS,
    HIDDEN,
    PATCH,
    WIDTH,
    Original,
    given,
    memory,
    noise,
    of_timm,
    randomize,
    run,
)


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class ResidualAttentionBlock(nn.Module):
    def __init__(self, width, heads, gelu):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1 = nn.LayerNorm(width)
        first, last = nn.Linear(width, HIDDEN), nn.Linear(HIDDEN, width)
        layers = {"c_fc": first, "gelu": gelu, "c_proj": last}
        self.mlp = nn.Sequential(collections.OrderedDict(layers))
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Tower(nn.Module):
    def __init__(self, width, heads, gelu):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, PATCH, PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(GRID + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.Sequential(
            *(ResidualAttentionBlock(width, heads, gelu) for _ in range(DEPTH))
        )
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.zeros(width, CLASSES))

    def forward(self, x):
        x = self.conv1(x).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(x), 1, -1)
        x = torch.cat([first, x], dim=1) + self.positional_embedding
        x = self.transformer.resblocks(self.ln_pre(x))
        return self.ln_post(x[:, 0]) @ self.proj


TEXT = {
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
    """A head is 64 channels wide there; three numbers are OpenAI's alone."""
    model = randomize(Tower(64, 1, QuickGELU()))
    alone = ("input_resolution", "context_length", "vocab_size")
    tensors = visual(model) | TEXT | dict.fromkeys(alone, noise())
    name = given("vit_base_patch32_clip_224.openai", images=None, heads=None)
    return Original(tensors, run(model), name)


def openclip():
    """Both towers; also of parallel training."""
    model = randomize(Tower(WIDTH, HEADS, nn.GELU()))
    name = given("vit_base_patch32_clip_224.laion2b")
    parallel = {f"module.{k}": v for k, v in (visual(model) | TEXT).items()}
    return Original(visual(model) | TEXT, run(model), name, also=(parallel,))


def openclip_trunk():
    """A tower of timm's, with a projection beside it."""
    trunk = of_timm()
    project = randomize(nn.Linear(WIDTH, CLASSES, bias=False))
    text = {f"text.{name}": tensor for name, tensor in TEXT.items()}
    tensors = visual(trunk, "visual.trunk.") | text | {"logit_scale": noise()}
    tensors["visual.head.proj.weight"] = memory(project)["weight"]
    return Original(tensors, run(lambda x: project(trunk(x))), given("deit_s"))
