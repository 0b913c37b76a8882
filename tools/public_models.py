"""Write files of the package from timm's models: python -m tools.public_models

imagepiece_jax/models/public_models.json has a row for each of timm's vision
transformers that an `architecture.Architecture` can express: its parts, timm's class
and the arguments that timm's code gives the class, its former names, and the images of
its published weights, timm's default weights first. timm_classes.json beside it has the
classes' default arguments. imagepiece_jax/data/imagenet_classes.txt has ImageNet-1k's
classes in the order of labels. Needs torch and timm; allocates no weights.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import inspect
import json
import pathlib
import re

import timm
import torch
from timm.data import ImageNetInfo
from timm.layers import GluMlp, Mlp, PatchEmbed, SwiGLU, attention, pos_embed_sincos
from timm.models import deit, eva, get_deprecated_models, vision_transformer
from torch import nn

from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.rotary import Rotary

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODELS = ROOT / "imagepiece_jax" / "models" / "public_models.json"
CLASSES_OF_TIMM = MODELS.with_name("timm_classes.json")
CLASSES = ROOT / "imagepiece_jax" / "data" / "imagenet_classes.txt"
KINDS = (vision_transformer.VisionTransformer, deit.VisionTransformerDistilled, eva.Eva)
BLOCKS = (vision_transformer.Block, eva.EvaBlock)
ATTENTIONS = (attention.Attention, attention.AttentionRope, eva.EvaAttention)
GELUS = {"GELU": "exact", "GELUTanh": "tanh", "QuickGELU": "quick"}
POOLS = {"token": "token", "avg": "mean", "map": "map"}
DEFAULT = dataclasses.asdict(Architecture())
# Arguments that a row has as sizes, that its weights have, or that only training needs.
LEFT_OUT = ("patch_size", "embed_dim", "depth", "num_heads", "img_size", "in_chans")
LEFT_OUT += ("num_classes", "weight_init", "device", "dtype")


class Unsupported(Exception):
    """A part that no Architecture has."""


def require_part(condition, part):
    """Raise Unsupported, which names the part, where the condition does not hold."""
    if not condition:
        raise Unsupported(part if isinstance(part, str) else type(part).__name__)


@contextlib.contextmanager
def noted_arguments():
    """Yield a dict, filled with the arguments that timm's code gives a class."""
    seen = {}
    originals = {kind: kind.__init__ for kind in KINDS}

    def record(init):
        @functools.wraps(init)
        def wrapped(self, **arguments):
            seen.update({**arguments, **seen})  # a subclass's come first
            init(self, **arguments)

        return wrapped

    for kind, init in originals.items():
        kind.__init__ = record(init)
    try:
        yield seen
    finally:
        for kind, init in originals.items():
            kind.__init__ = init


def as_row(arguments):
    """The arguments that JSON can express, without those of LEFT_OUT."""
    kinds = bool | int | float | str | tuple | None
    row = {}
    for name, value in arguments.items():
        if name not in LEFT_OUT and isinstance(value, kinds):
            row[name] = value
    return row


def facts(model):
    """Size and architecture of one of timm's models, as fields of create_model."""
    require_part(type(model) in KINDS, model)
    require_part(type(model.patch_embed) is PatchEmbed, model.patch_embed)
    block = model.blocks[0]
    patch = model.patch_embed.proj
    require_part(type(block) in BLOCKS, block)
    require_part(type(block.attn) in ATTENTIONS, block.attn)
    require_part(isinstance(model.norm, nn.LayerNorm | nn.Identity), model.norm)
    require_part(isinstance(block.norm1, nn.LayerNorm), block.norm1)
    require_part(isinstance(block.attn.q_norm, nn.Identity), "norm of queries")
    require_part(model.global_pool in POOLS, f"pool {model.global_pool!r}")
    require_part(len(set(patch.kernel_size)) == 1, "stem")
    require_part(patch.stride == patch.kernel_size, "stem")
    width = model.embed_dim
    hidden, mlp, gelu = mlp_facts(block.mlp)
    eps = {m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)}
    require_part(len(eps) == 1, "eps")
    registers = getattr(model, "reg_token", None)
    arch = {
        "class_token": model.cls_token is not None,
        "dist_token": getattr(model, "dist_token", None) is not None,
        "registers": 0 if registers is None else registers.shape[1],
        "prefix_positions": not model.no_embed_class,
        "patch_bias": patch.bias is not None,
        "qkv_bias": block.attn.qkv is not None and block.attn.qkv.bias is not None,
        "pre_norm": isinstance(model.norm_pre, nn.LayerNorm),
        "attn_norm": isinstance(block.attn.norm, nn.LayerNorm),
        "mlp_norm": isinstance(block.mlp.norm, nn.LayerNorm),
        "norm_eps": eps.pop(),
        "layer_scale": hasattr(block, "ls1") and type(block.ls1) is not nn.Identity,
        "gelu": gelu,
        "mlp": mlp,
        "pool": POOLS[model.global_pool],
        "final_norm": isinstance(model.norm, nn.LayerNorm),
        "fc_norm": isinstance(model.fc_norm, nn.LayerNorm),
    }
    if type(model) is eva.Eva:
        arch |= eva_facts(model)
    if model.attn_pool is not None:
        heads = model.attn_pool.num_heads
        arch["pool_heads"] = 0 if heads == block.attn.num_heads else heads
        of_pool, _, of_pool_gelu = mlp_facts(model.attn_pool.mlp)
        require_part(of_pool_gelu == gelu, "activation of the pool")
        arch["pool_mlp_ratio"] = None if of_pool == hidden else of_pool / width
    prefix = arch["class_token"] or arch["registers"]
    if prefix and arch["pool"] != "token":  # timm's class Eva: a map does, a mean not
        include = getattr(model, "pool_include_prefix", arch["pool"] == "map")
        arch["pool_include_prefix"] = include
    if not prefix or not arch.get("positions", True):
        arch["prefix_positions"] = True  # without a prefix or positions
    fields = {"patch_size": patch.kernel_size[0], "embed_dim": width}
    fields |= {"depth": len(model.blocks), "num_heads": block.attn.num_heads}
    if hidden != 4 * width:  # create_model's default
        fields["mlp_ratio"] = hidden / width
    return fields | {"arch": {k: v for k, v in arch.items() if v != DEFAULT[k]}}


def eva_facts(model):
    """Fields of an Architecture that timm's class Eva has under other names."""
    block = model.blocks[0]
    rope = model.rope
    attn = block.attn
    require_part(attn.gate is None, "gate in attention")
    for each in model.blocks:
        require_part(each.attn.proj.in_features == model.embed_dim, "heads")
    one_branch = (block.gamma_1 is None) != (block.gamma_2 is None)
    require_part(not one_branch, "LayerScale of one branch")
    if type(attn) is eva.EvaAttention:
        separate = attn.q_proj if attn.qkv is None else None
        bias = attn.q_bias if separate is None else separate.bias
        biases = {"qkv_bias": bias is not None, "key_bias": bias is None}
    else:
        require_part(attn.qkv is not None, "queries apart from keys")
        biases = {"qkv_bias": attn.qkv.bias is not None}
    fields = {"positions": model.pos_embed is not None, **biases}
    fields["layer_scale"] = block.gamma_1 is not None
    if rope is not None:
        fields["rotary"] = rotary_facts(rope)
    return fields


def rotary_facts(rope):
    """Fields of a rotary.Rotary that differ from its defaults."""
    if type(rope) is pos_embed_sincos.RotaryEmbeddingDinoV3:
        require_part(rope.normalize_coords == "separate", "coordinates")
        require_part(not rope.grid_offset, "coordinates")
        require_part(rope.min_period is None and rope.max_period is None, "periods")
        fields = {"origin": "center"}
    else:
        require_part(type(rope) is pos_embed_sincos.RotaryEmbeddingCat, rope)
        require_part(rope.grid_type == "index", "coordinates")
        reference = rope.ref_feat_shape
        fields = {"reference": None if reference is None else tuple(reference)}
        fields["start"] = float(rope.grid_offset)
    fields["temperature"] = float(rope.temperature)
    fields["axes"] = {"ij": "yx", "xy": "xy"}[rope.grid_indexing]
    fields["planes"] = "halves" if rope.rotate_half else "neighbors"
    defaults = dataclasses.asdict(Rotary())
    return {k: v for k, v in fields.items() if v != defaults[k]}


def mlp_facts(mlp):
    """(hidden width, kind, GELU) of an MLP."""
    if type(mlp) is Mlp:
        name = type(mlp.act).__name__
        require_part(name in GELUS, f"activation {name}")
        gelu = GELUS[name]
        if name == "GELU" and getattr(mlp.act, "approximate", "none") == "tanh":
            gelu = "tanh"
        return mlp.fc1.out_features, "gelu", gelu
    if type(mlp) is SwiGLU:
        return mlp.fc1_g.out_features, "swiglu", "exact"
    require_part(type(mlp) is GluMlp and isinstance(mlp.act, nn.SiLU), mlp)
    require_part(not mlp.gate_last, "gate")
    return mlp.fc2.in_features, "swiglu", "exact"


def images(name):
    """The images of the weights `name`."""
    cfg = timm.get_pretrained_cfg(name)
    _, height, width = cfg.input_size
    require_part(height == width, "images")
    preprocessing = {"image_size": height, "crop": cfg.crop_pct}
    preprocessing["interpolation"] = cfg.interpolation
    if cfg.crop_mode != "center":
        preprocessing["crop_mode"] = cfg.crop_mode
    fields = {"preprocessing": preprocessing, "num_classes": cfg.num_classes}
    fields |= {"mean": cfg.mean, "std": cfg.std}
    # These were trained with QuickGELU; timm's name without "quickgelu" has GELU.
    if cfg.notes and "quickgelu" in cfg.notes[0]:
        fields["gelu"] = "quick"
    # The head of an image-text model's tower; fine-tuned towers have classes.
    if re.search("_(clip|pe_core)_", name) and "_ft_" not in name:
        fields["problem_type"] = "projection"
    if "_siglip_" in name:
        fields["gelu"] = "tanh"  # as trained; timm has it for newer weights alone
    if name.endswith(".dino") or "_dinov2." in name and "_reg" not in name:
        fields["resize"] = "offset"  # DINO's and DINOv2's own code, not timm's
    if name.endswith(".mae"):
        fields["prop_attn"] = False  # off the shelf, as ToMe's authors use MAE
    return fields


def former_names():
    """{architecture: {its name in timm before 0.9: tag of its weights}}."""
    former = {}
    for old, new in get_deprecated_models().items():
        if new is not None:
            name, _, tag = new.partition(".")
            former.setdefault(name, {})[old] = tag
    return former


def write_models():
    names = []
    for module in ("vision_transformer", "deit", "eva"):
        names += timm.list_models(module=module)
    table = {}
    skipped = {}
    former = former_names()
    for name in names:
        try:
            table[name] = model_row(name, former.get(name))
        except Unsupported as error:
            skipped[name] = str(error)
    write_rows(MODELS, table)
    print(f"{len(table)} models, {MODELS.stat().st_size} bytes; without:")
    for name, why in skipped.items():
        print(f"  {name}: {why}")


def model_row(name, former_names):
    """The row of a model; raises Unsupported."""
    with torch.device("meta"), noted_arguments() as arguments:
        model = timm.create_model(name, pretrained=False)
    usual = defaults(type(model)).items()
    arguments = dict(item for item in as_row(arguments).items() if item not in usual)
    row = {"class": type(model).__name__, "arguments": arguments, **facts(model)}
    if former_names:
        row["former_names"] = former_names
    tagged = [n for n in timm.list_models(name, pretrained=True) if "." in n]
    weights = {}
    for full_name in tagged or timm.list_pretrained(name) or [name]:
        weights[full_name.partition(".")[2]] = images(full_name)
    default = timm.get_pretrained_cfg(name).tag
    if default in weights:
        weights = {default: weights.pop(default), **weights}
    return row | {"weights": weights}


def defaults(kind):
    """The defaults of the arguments of one of timm's classes, as a row."""
    if issubclass(kind, vision_transformer.VisionTransformer):  # a distilled one, too
        kind = vision_transformer.VisionTransformer
    parameters = inspect.signature(kind).parameters
    return as_row({name: parameter.default for name, parameter in parameters.items()})


def write_rows(path, table):
    """Write a dict as JSON with a line for each item."""
    rows = [f"{json.dumps(name)}: {json.dumps(row)}" for name, row in table.items()]
    path.write_text("{\n" + ",\n".join(rows) + "\n}\n")


def write_classes():
    """Write a line for each class of ImageNet-1k: WordNet synset and its lemmas."""
    info = ImageNetInfo("imagenet-1k")
    version = importlib.metadata.version("timm")
    lines = [
        "# ImageNet-1k's classes by label: WordNet synset and its lemmas (WordNet 3.0,",
        "# Princeton University), as in timm's data/_info/imagenet_synsets.txt and",
        f"# imagenet_synset_to_lemma.txt ({version}), by tools.public_models",
    ]
    columns = info.label_names(), info.label_descriptions()
    lines += ["\t".join(synset_lemmas) for synset_lemmas in zip(*columns, strict=True)]
    CLASSES.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_models()
    write_rows(CLASSES_OF_TIMM, {kind.__name__: defaults(kind) for kind in KINDS})
    write_classes()
