"""Vision transformers in Flax and checkpoints as in vit_jax and big_vision.

Dosovitskiy et al. 2021 and Zhai et al. 2023. Modules are Flax's own, with the names of
google-research/vision_transformer and google-research/big_vision: checkpoints are what
`init` gives, with random values.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

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
    images,
    noise,
)

LINEN, BEFORE = (0, 0, 1, 0), (0, 1, 2, 3)  # numbers of a block's four modules


class MlpBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        hidden = nn.gelu(nn.Dense(HIDDEN)(x))  # Dense_0: it is made first
        return nn.Dense(x.shape[-1])(hidden)


class Block(nn.Module):
    numbers: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        kinds = "LayerNorm", "MultiHeadDotProductAttention", "LayerNorm", "MlpBlock"
        names = [f"{k}_{i}" for k, i in zip(kinds, self.numbers, strict=True)]
        y = nn.LayerNorm(name=names[0])(x)
        x = x + nn.MultiHeadDotProductAttention(HEADS, name=names[1])(y, y)
        return x + MlpBlock(name=names[3])(nn.LayerNorm(name=names[2])(x))


class Encoder(nn.Module):
    numbers: tuple[int, ...]
    positions: bool  # in here, as in vit_jax

    @nn.compact
    def __call__(self, x):
        if self.positions:
            x = AddPositions(name="posembed_input")(x)
        for index in range(DEPTH):
            x = Block(self.numbers, name=f"encoderblock_{index}")(x)
        return nn.LayerNorm(name="encoder_norm")(x)


class AddPositions(nn.Module):
    @nn.compact
    def __call__(self, x):
        shape = (1, *x.shape[1:])
        return x + self.param("pos_embedding", nn.initializers.normal(), shape)


class MAPHead(nn.Module):
    @nn.compact
    def __call__(self, x):
        probe = self.param("probe", nn.initializers.normal(), (1, 1, x.shape[-1]))
        probe = jnp.tile(probe, (len(x), 1, 1))
        x = nn.MultiHeadDotProductAttention(HEADS)(probe, x)
        y = nn.LayerNorm()(x)
        return (x + MlpBlock()(y))[:, 0]


class ViT(nn.Module):
    """pool: "tok", "gap" or "map", as in big_vision."""

    pool: str
    numbers: tuple[int, ...] = LINEN
    positions: bool = False
    classes: int = CLASSES

    @nn.compact
    def __call__(self, x):
        sides = (PATCH, PATCH)
        x = nn.Conv(WIDTH, sides, sides, padding="VALID", name="embedding")(x)
        x = x.reshape(len(x), -1, WIDTH)
        normal = nn.initializers.normal()
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
        return nn.Dense(self.classes, name="head")(x) if self.classes else x


def random(model):
    """{path: value} of trained magnitude, of values that float16 has."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), images())["params"]
    rng, out = np.random.default_rng(0), {}
    for path, leaf in traverse_util.flatten_dict(shapes, sep="/").items():
        value, kind = rng.normal(size=leaf.shape), path.rpartition("/")[2]
        if kind == "scale":
            value = 1 + 0.3 * value
        elif kind == "kernel":
            apart = path.split("/")[-2] in ("query", "key", "value")  # [D, heads, d]
            value = value / np.prod(leaf.shape[: 1 if apart else -1]) ** 0.5
        else:
            value = (0.3 if kind == "bias" else 0.5) * value
        out[path] = value.astype(np.float16).astype(np.float32)
    return out


def of_google(model, name, start="", more=()):
    """The model with its parameters under `start`, beside tensors of no use here."""
    tensors = random(model)
    params = traverse_util.unflatten_dict(tensors, sep="/")
    with jax.default_matmul_precision("highest"):
        outputs = np.asarray(model.apply({"params": params}, images()))
    tensors = {f"{start}{path}": value for path, value in tensors.items()}
    # Heads, normalization, GELU, epsilon and resizing are the layout's to say.
    fields = given(name, images=None, heads=None)
    return Original(tensors | dict(more), outputs, fields)


def vit_jax():
    """As released, with the numbers of Flax before linen; also as fine-tuning saves."""
    name = "deit_s"  # its parts; a name of timm's would mean timm's function
    found = of_google(ViT("tok", BEFORE, positions=True), name)
    also = of_google(ViT("tok", positions=True), name, "opt/target/")
    also.tensors["opt/state/step"] = noise()
    return dataclasses.replace(found, also=(also.tensors,))


TEXT = {
    "params/txt/Embed_0/embedding": noise(9, 8),
    "params/txt/Encoder_0/encoderblock_0/LayerNorm_0/scale": noise(8),
    "params/t": noise(1),
    "params/b": noise(1),
}


def big_vision_siglip():
    """Both towers; also with the blocks of a scan."""
    name = "vit_base_patch16_siglip_224"
    found = of_google(ViT("map", classes=0), name, "params/img/", TEXT)
    scan, blocks = {}, {}
    for path, value in found.tensors.items():
        start, block, rest = path.partition("encoderblock_")
        if block and "txt" not in path:
            number, _, rest = rest.partition("/")
            blocks.setdefault(f"{start}encoderblock/{rest}", {})[int(number)] = value
        else:
            scan[path] = value
    for path, parts in blocks.items():
        scan[path] = np.stack([parts[i] for i in range(DEPTH)])
    return dataclasses.replace(found, also=(scan,))


def big_vision_mean():
    """A classifier of the mean of the patches, without a class token."""
    name = "vit_base_patch16_siglip_gap_224"
    return of_google(ViT("gap"), name, "params/")


def big_vision_token():
    """Positions come before the class token; until 2022 they were the encoder's."""
    found = of_google(ViT("tok"), "flexivit_base")
    found.given["gelu"] = "tanh"  # the name means timm's function, which has not
    old = dict(found.tensors)
    old["Transformer/pos_embedding"] = old.pop("pos_embedding")
    return dataclasses.replace(found, also=(old,))
