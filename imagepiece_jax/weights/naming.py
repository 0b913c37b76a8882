"""Tensor names of every supported library, translated to timm's names and back.

Canonical names are timm's, with SwiGLU's first layer split in two: mlp.fc1_g, the
gate, and mlp.fc1_x. `models.timm_tensors` turns canonical tensors into variables.
"""

import dataclasses
import os
import re
from collections.abc import Mapping

import numpy as np

from imagepiece_jax.errors import InputError, titled_errors
from imagepiece_jax.models import registry
from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.config import ViTConfig
from imagepiece_jax.weights.tensor_files import (
    NamedArrays,
    PathOrStateDict,
    open_tensors,
    weights_title,
)


@dataclasses.dataclass(frozen=True)
class Naming:
    """The tensor names of one library's checkpoints."""

    library: str  # the library in error messages
    # One tensor name identifies a library: all its checkpoints have it. The text before
    # the name, such as "vision_model." or "backbone.", is the vision tower's prefix.
    mark: str
    # pattern for the start of a block's names, with the block number
    block_pattern: str
    # {pattern for a block's modules or tensors: timm's name}; "." matches only a dot
    block_names: dict[str, str]
    tower_names: Mapping[str, str]  # like `block_names`, for the rest of the tower
    # like `block_names`, for names without the tower's prefix
    outside_names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ignored_names: str = r"(?!)"  # pattern for the start of names that no model needs
    is_strict: bool = True  # unlisted names are errors; False: they are timm's already
    # The last norm may apply to the pooled vector (fc_norm). Its name does not tell.
    may_norm_pooled: bool = False

    def translate_name(self, name: str, prefix: str) -> str | None:
        """Translate a tensor's name to timm's; None if no model needs the tensor.

        Some results are not timm's names yet: `_canonicalize_tensors` finishes them.
        Raises InputError for a tensor that the library does not have.
        """
        is_in_tower = name.startswith(prefix)
        tower_name = name.removeprefix(prefix)
        if re.match(self.ignored_names if is_in_tower else IGNORED_NAMES, tower_name):
            return None
        name_start = ""
        inner_name = tower_name  # without the block's start
        timm_name = None
        if is_in_tower and (match := re.match(self.block_pattern, tower_name)):
            # Without a number the tensor holds all blocks (big_vision).
            name_start = f"blocks.{match[1]}." if match[1] else SCANNED_BLOCKS
            inner_name = tower_name[match.end() :]
            timm_name = _look_up_name(inner_name, self.block_names)
        elif is_in_tower:
            timm_name = _look_up_name(tower_name, self.tower_names)
        if timm_name is None and not name_start:
            timm_name = _look_up_name(name, self.outside_names)
        if timm_name is None and is_in_tower and not self.is_strict:
            timm_name = inner_name
        if not timm_name:
            # [:-1]: without the dot
            place = f" outside the tower {prefix[:-1]}" if prefix else ""
            raise InputError(f"tensor {name} is not part of {self.library}{place}")
        return name_start + timm_name


def _look_up_name(name, template_by_pattern):
    """Translate a tensor's or module's name; None if no pattern fits it."""
    # "." in a pattern matches only a dot. A tensor's leaf, such as .weight, stays.
    for pattern, template in template_by_pattern.items():
        name_pattern = rf"(?:{pattern})(?P<leaf>.\w+)?".replace(".", r"\.")
        if match := re.fullmatch(name_pattern, name):
            return match.expand(template) + (match["leaf"] or "")
    return None


# Ignored names outside the vision tower: the text tower of CLIP and SigLIP with its
# logit scale and bias, optimizer states, self-distillation heads (DINO, DINOv2) and
# decoders.
IGNORED_NAMES = (
    r"(text|text_model|text_projection|transformer|token_embedding|attn_mask|ln_final|"
    r"positional_embedding|logit_scale|logit_bias|input_resolution|context_length|"
    r"vocab_size|(params\.)?(txt|t|b)|opt|head\.(mlp|last_layer)|dino_head|ibot_head|decoder)"
    r"(\.|$)"
)


QKV_PATTERN = "(q|k|v)(?:uery|ey|alue|_proj)"
FLAX_ATTENTION = "MultiHeadDotProductAttention_[01]"
TRANSFORMERS_VIT = Naming(
    # Names in files and, since version 5, in memory, where DINOv3's blocks are below
    # "model". Poolers are left out, because no public head reads them.
    library="transformers' ViT, DeiT and DINOv2",
    mark="embeddings.patch_embeddings.projection.weight",
    block_pattern=r"(?:encoder\.layer|layers|(?:model\.)?layer)\.(\d+)\.",
    block_names={
        f"attention.(?:attention.)?{QKV_PATTERN}": r"attn.\1",
        "attention.(?:output.dense|o_proj)": "attn.proj",
        "layernorm_before|norm1": "norm1",
        "layernorm_after|norm2": "norm2",
        "intermediate.dense|mlp.(?:fc1|weights_in)": "mlp.fc1",
        "output.dense|mlp.(?:fc2|weights_out|down_proj)": "mlp.fc2",
        "mlp.gate_proj": "mlp.fc1_g",
        "mlp.up_proj": "mlp.fc1",  # fc1_x if there is a gate
        "layer_scale([12]).lambda1": r"ls\1.gamma",
    },
    tower_names={
        "embeddings.patch_embeddings(?:.projection)?": "patch_embed.proj",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.(cls_token|register_tokens)": r"\1",
        "embeddings.distillation_token": "distillation_token",
        "(?:layer)?norm": "norm",
    },
    outside_names={
        "(?:cls_)?classifier": "head",
        "distillation_classifier": "head_dist",
    },
    # BEiT's pooler has a norm.
    ignored_names=r"embeddings\.mask_token$|pooler\.dense\.",
)
TIMM_NAMING = Naming(
    # Also the original DeiT, MAE, DINO, DINOv2, EVA and EVA-02, and OpenCLIP with a
    # timm trunk. DINOv2 saves blocks in chunks: blocks.CHUNK.BLOCK, where BLOCK counts
    # through all chunks. Rotary positions are computed from the grid, except for
    # learned ones (freqs). local_cls_norm serves the small crops in DINOv3's training.
    library="timm's models",
    mark="patch_embed.proj.weight",
    block_pattern=r"blocks\.(?:\d+\.)?(\d+)\.",
    block_names={
        "gamma_([12])": r"ls\1.gamma",
        f"attn.{QKV_PATTERN}": r"attn.\1",
        "attn.inner_attn_ln": "attn.norm",
        "mlp.w1": "mlp.fc1_g",
        "mlp.w2": "mlp.fc1_x",
        "mlp.w12": "mlp.fc1",
        "mlp.w3": "mlp.fc2",
        "mlp.ffn_ln": "mlp.norm",
    },
    tower_names={},
    outside_names={"visual.head.proj": "projection"},
    ignored_names=r"decoder_(embed|blocks|norm|pos_embed|pred)(\.|$)|"
    r"(.*\.)?rope\.(?!freqs$)|local_cls_norm\.|lm_head\.",
    is_strict=False,
)
# The first naming whose mark is found wins, so the order matters: DINOv3's own models
# also have TIMM's mark, and transformers' CLIP also has a class_embedding.
NAMINGS = (
    Naming(
        # Before linen, Flax numbered all modules of a block together (MlpBlock_3).
        # Linen numbers every kind of module on its own (MlpBlock_0).
        library="Google's Flax files",
        mark="embedding.kernel",
        # big_vision scans its blocks: one tensor holds all blocks and has no number.
        block_pattern=r"Transformer\.encoderblock(?:_(\d+))?\.",
        block_names={
            "LayerNorm_0": "norm1",
            "LayerNorm_[12]": "norm2",
            f"{FLAX_ATTENTION}.{QKV_PATTERN}": r"attn.\1",
            f"{FLAX_ATTENTION}.out": "attn.proj",
            "MlpBlock_[03].Dense_0": "mlp.fc1",
            "MlpBlock_[03].Dense_1": "mlp.fc2",
        },
        tower_names={
            "embedding": "patch_embed.proj",
            "cls": "cls_token",
            "(?:Transformer.)?(?:posembed_input.)?pos_embedding": "pos_embed",
            "Transformer.encoder_norm": "norm",
            "head": "head",
            "MAPHead_0.probe": "attn_pool.latent",
            f"MAPHead_0.{FLAX_ATTENTION}.{QKV_PATTERN}": r"attn_pool.\1",
            f"MAPHead_0.{FLAX_ATTENTION}.out": "attn_pool.proj",
            "MAPHead_0.LayerNorm_0": "attn_pool.norm",
            "MAPHead_0.MlpBlock_0.Dense_0": "attn_pool.mlp.fc1",
            "MAPHead_0.MlpBlock_0.Dense_1": "attn_pool.mlp.fc2",
        },
    ),
    TRANSFORMERS_VIT,
    dataclasses.replace(
        TRANSFORMERS_VIT,
        library="transformers' DINOv3",
        mark="embeddings.patch_embeddings.weight",
        outside_names={},
    ),
    Naming(
        library="transformers' CLIP and SigLIP",
        mark="embeddings.patch_embedding.weight",
        block_pattern=r"encoder\.layers\.(\d+)\.",
        block_names={
            f"self_attn.{QKV_PATTERN}": r"attn.\1",
            "self_attn.out_proj": "attn.proj",
            "layer_(norm[12])": r"\1",
            "(mlp.fc[12])": r"\1",
        },
        tower_names={
            "embeddings.patch_embedding": "patch_embed.proj",
            "embeddings.position_embedding.weight": "pos_embed",
            "embeddings.class_embedding": "cls_token",
            "pre_layrnorm": "norm_pre",  # transformers' own spelling
            "post_layernorm": "norm",
            "head.probe": "attn_pool.latent",
            "head.attention.in_proj_(weight|bias)": r"attn_pool.qkv.\1",
            "head.attention.out_proj": "attn_pool.proj",
            "head.layernorm": "attn_pool.norm",
            "head.(mlp.fc[12])": r"attn_pool.\1",
        },
        outside_names={"visual_projection": "projection", "classifier": "mean_head"},
        ignored_names=r"embeddings\.position_ids$",
    ),
    Naming(
        library="OpenAI's CLIP and OpenCLIP",
        mark="class_embedding",
        block_pattern=r"transformer\.resblocks\.(\d+)\.",
        block_names={
            "ln_([12])": r"norm\1",
            "attn.in_proj_(weight|bias)": r"attn.qkv.\1",
            "attn.out_proj": "attn.proj",
            "mlp.c_fc": "mlp.fc1",
            "mlp.c_proj": "mlp.fc2",
        },
        tower_names={
            "conv1": "patch_embed.proj",
            "class_embedding": "cls_token",
            "positional_embedding": "pos_embed",
            "ln_pre": "norm_pre",
            "ln_post": "norm",
            "proj": "projection.kernel",  # [in, out], like a Flax kernel
        },
        may_norm_pooled=True,
    ),
    dataclasses.replace(
        TIMM_NAMING,
        library="DINOv3's own models",
        mark="storage_tokens",
        block_names=TIMM_NAMING.block_names
        | {"attn.qkv.(bias|bias_mask)": r"attn.masked.\1"},
        tower_names={"storage_tokens": "reg_token"},
        outside_names={},
        # rope_embed.periods is an error in other namings.
        ignored_names=rf"{TIMM_NAMING.ignored_names}|rope_embed\.periods$",
    ),
    TIMM_NAMING,
)


# timm's names and our own, which identify a file without TIMM's mark, such as one with
# a conv stem.
TIMM_NAME_PATTERN = r"blocks\.\d|patch_embed\.|pos_embed$|cls_token$|reducer\."
NUM_SHOWN_NAMES = 3  # names in an error message
# Name parts that wrappers insert: parallel training, torch.compile and activation
# checkpointing. Training scripts put further parts in front of all names.
_INSERTED_PARTS = """
    module _orig_mod _checkpoint_wrapped_module _fsdp_wrapped_module
""".split()
_FRONT_PATTERN = r"^((model|net|network)\.)*"
SCANNED_BLOCKS = "blocks.all."  # start of timm's name for a tensor of scanned blocks


def read_timm_tensors(
    weights: PathOrStateDict,
    model_key: str | None = None,
    config: ViTConfig | None = None,
) -> NamedArrays:
    """Read the tensors of a file or state dict of any library, {timm's name: array}.

    Tensors that no model needs are never read: text towers, decoders, poolers and
    self-distillation heads. timm's own names are checked in `timm_tensors.from_timm`.

    model_key: as for `open_tensors`
    config: resolves names with two meanings, such as a last norm before or after the
        pool; None: names are taken literally
    """
    with open_tensors(weights, model_key) as lazy_tensors:
        unwrapped_names = _strip_wrapper_parts(lazy_tensors)
        naming, prefix = _find_naming([*unwrapped_names.values()])
        timm_names = {}  # {name in the file: timm's name}
        for name, unwrapped_name in unwrapped_names.items():
            if timm_name := naming.translate_name(unwrapped_name, prefix):
                timm_names[name] = timm_name
        state_dict = {name: lazy_tensors[name].read() for name in timm_names}
    with titled_errors(weights_title(weights)):
        try:
            renamed_tensors = _rename_tensors(state_dict, timm_names)
            # It replaces hidden patches in pretraining, and no model here hides any.
            has_mask_token = renamed_tensors.pop("mask_token", None) is not None
            if config is not None:
                _check_num_heads(renamed_tensors, config)
            tensors = _canonicalize_tensors(renamed_tensors)
        except InputError:
            raise
        except (IndexError, KeyError, TypeError, ValueError) as error:
            subject = f"its tensors' shapes do not fit {naming.library}"
            raise InputError(f"{subject}: {error}") from error
    if config is None:
        return tensors
    # A mask token beside q_bias marks EVA-02's pretrained weights. Their last norm may
    # be an fc_norm, because the public configs describe the fine-tuned models.
    is_pretrained_eva = has_mask_token and "blocks.0.attn.q_bias" in tensors
    may_norm_pooled = naming.may_norm_pooled or is_pretrained_eva
    if may_norm_pooled and config.arch.fc_norm and "fc_norm.weight" not in tensors:
        for name in [name for name in tensors if name.startswith("norm.")]:
            tensors[f"fc_{name}"] = tensors.pop(name)
    # Without arch.qkv_bias the attention biases are dropped, but only if all are 0, so
    # that no learned bias is lost.
    bias_pattern = re.compile(r"blocks\.\d+\.attn\.([qv]_bias|qkv\.bias)")
    bias_names = [name for name in tensors if bias_pattern.fullmatch(name)]
    if config.arch.qkv_bias or any(np.any(tensors[name]) for name in bias_names):
        return tensors
    return {name: tensors[name] for name in tensors if name not in bias_names}


def _rename_tensors(state_dict, timm_names):
    """Give tensors timm's names, and split scanned blocks, whose first axis is blocks.

    timm_names: {name in the file: timm's name}
    """
    renamed_tensors = {}
    source_names = {}  # {timm's name: name in the file}
    for name, tensor in state_dict.items():
        block_tensors = {timm_names[name]: tensor}
        _, is_scanned, leaf = timm_names[name].partition(SCANNED_BLOCKS)
        if is_scanned:
            block_names = [f"blocks.{index}.{leaf}" for index in range(len(tensor))]
            block_tensors = dict(zip(block_names, tensor, strict=True))
        for timm_name in block_tensors:
            if timm_name in source_names:
                names = f"{source_names[timm_name]} and {name}"
                raise InputError(f"tensors {names} are the same part, {timm_name}")
            source_names[timm_name] = name
        renamed_tensors |= block_tensors
    return renamed_tensors


def _check_num_heads(renamed_tensors, config):
    # Only Flax kernels, [D, heads, d], show the number of heads. With another number
    # the shapes would fit, and the logits would silently be wrong.
    query_kernel = renamed_tensors.get("blocks.0.attn.q.kernel", np.zeros(0))
    if query_kernel.ndim == 3 and query_kernel.shape[1] != config.num_heads:
        heads = f"its tensors are of {query_kernel.shape[1]} heads"
        raise InputError(f"num_heads is {config.num_heads}, but {heads}")


def pack_for_timm(
    tensors: Mapping[str, np.ndarray], architecture: Architecture, timm_model: str
) -> NamedArrays:
    """Convert canonical tensors (`timm_tensors.to_timm`) for timm's own classes.

    timm_model: timm's name, or any other name for a model that timm lacks
    """
    is_eva = registry.timm_class(timm_model) == "Eva"
    # timm keeps q, k and v apart in EVA-02's models with sub-LN (an MLP norm and no key
    # bias). It packs both halves of a SwiGLU without a norm in models with position
    # embeddings.
    keeps_qkv_apart = architecture.mlp_norm and not architecture.key_bias
    packed_tensors = {}
    for name, tensor in tensors.items():
        packed_name = name
        if is_eva:
            packed_name = re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", name)
        name_start, qkv_ending, _ = packed_name.partition("qkv.weight")
        if qkv_ending and keeps_qkv_apart:
            thirds = np.split(tensor, 3)  # of the outputs, the first axis
            for letter, third in zip("qkv", thirds, strict=True):
                packed_tensors[f"{name_start}{letter}_proj.weight"] = third
            continue
        if keeps_qkv_apart:
            bias_pattern = r"\.attn\.([qv])_bias$"
            packed_name = re.sub(bias_pattern, r".attn.\1_proj.bias", packed_name)
        packed_tensors[packed_name] = tensor
    packs_gates = architecture.positions and not architecture.mlp_norm
    if architecture.mlp == "swiglu" and packs_gates:
        gate_names = [name for name in packed_tensors if ".mlp.fc1_g." in name]
        for gate_name in gate_names:
            linear_name = gate_name.replace("_g.", "_x.")
            halves = [packed_tensors.pop(name) for name in (gate_name, linear_name)]
            packed_tensors[gate_name.replace("_g.", ".")] = np.concatenate(halves)
    return packed_tensors


def _strip_wrapper_parts(tensor_names):
    """Map names to dotted names without the parts that wrappers added."""
    unwrapped_names = {}
    for name in tensor_names:
        name_parts = name.replace("/", ".").split(".")
        model_parts = [part for part in name_parts if part not in _INSERTED_PARTS]
        unwrapped_names[name] = ".".join(model_parts)
    common_start = os.path.commonprefix([*unwrapped_names.values()])
    front_length = len(common_start) - len(re.sub(_FRONT_PATTERN, "", common_start))
    return {name: unwrapped_names[name][front_length:] for name in unwrapped_names}


def _find_naming(tensor_names):
    """Find (naming, prefix of the vision tower) from a checkpoint's tensor names."""
    for naming in NAMINGS:
        mark = f".{naming.mark}"
        marked_names = [name for name in tensor_names if f".{name}".endswith(mark)]
        prefixes = sorted(name.removesuffix(naming.mark) for name in marked_names)
        if len(prefixes) > 1:
            raise InputError(f"it must hold one vision tower, not {prefixes}")
        if prefixes:
            return naming, prefixes[0]
    if any(re.match(TIMM_NAME_PATTERN, name) for name in tensor_names):
        return TIMM_NAMING, ""
    examples = ", ".join([*tensor_names][:NUM_SHOWN_NAMES])
    raise InputError(f"it has tensors of an unsupported model, such as {examples}")


def _canonicalize_tensors(tensors):
    """Bring renamed tensors of any library into the canonical form."""
    canonical_tensors = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "kernel":
            canonical_tensors[f"{module}.weight"] = _to_torch_weight(module, tensor)
        elif leaf == "scale":  # of a norm, as Flax calls it
            canonical_tensors[f"{module}.weight"] = tensor
        elif leaf == "bias":
            # Flax has an extra axis of heads.
            canonical_tensors[name] = tensor.reshape(-1)
        elif name in TOKEN_ROWS and tensor.ndim != 3:  # [N, D], or a single [D]
            canonical_tensors[name] = tensor.reshape(1, -1, tensor.shape[-1])
        elif name != "reg_token" or tensor.size:  # DINOv3's may be empty
            canonical_tensors[name] = tensor
    _stack_projections(canonical_tensors)
    _apply_bias_masks(canonical_tensors)
    _split_packed_layers(canonical_tensors)
    _add_class_position(canonical_tensors)
    _rename_head_and_token(canonical_tensors)
    return canonical_tensors


# Token rows, [1, N, D] in timm.
TOKEN_ROWS = """
    cls_token distillation_token register_tokens pos_embed attn_pool.latent
""".split()


def _to_torch_weight(module, kernel):
    """Turn a Flax kernel into a PyTorch weight: outputs first, heads flattened."""
    if kernel.ndim == 4:  # a convolution: [H, W, in, out] to [out, in, H, W]
        return kernel.transpose(3, 2, 0, 1)
    # q, k and v: [D, heads, d]; the output projection: [heads, d, D].
    if kernel.ndim == 3:
        is_output = module.endswith(".proj")
        kernel = kernel.reshape(-1, kernel.shape[-1] if is_output else kernel[0].size)
    return kernel.T


def _stack_projections(tensors):
    """Stack the blocks' q, k and v, and an attention pool's k and v, in place.

    Without a key bias, the other biases become timm's q_bias and v_bias.
    """
    for name in [*tensors]:
        match = re.fullmatch(r"(.*\battn|attn_pool)\.([qkv])\.(weight|bias)", name)
        # An earlier turn may have stacked it with its module's other projections.
        if not match or name not in tensors:
            continue
        module, found_letter, leaf = match.groups()
        letters = "kv" if module == "attn_pool" else "qkv"
        if found_letter not in letters:
            continue
        name_by_letter = {letter: f"{module}.{letter}.{leaf}" for letter in letters}
        stack_names = name_by_letter.values()
        missing_names = [each for each in stack_names if each not in tensors]
        if missing_names == [f"{module}.k.bias"] and letters == "qkv":
            tensors[f"{module}.q_bias"] = tensors.pop(name_by_letter["q"])
            tensors[f"{module}.v_bias"] = tensors.pop(name_by_letter["v"])
            continue
        if missing_names:
            raise InputError(f"it has {name}, but not {missing_names[0]}")
        projections = [tensors.pop(stack_name) for stack_name in stack_names]
        # Joined along the outputs, the first axis.
        tensors[f"{module}.{letters}.{leaf}"] = np.concatenate(projections)


def _apply_bias_masks(tensors):
    """Apply DINOv3's masks to the q, k, v biases, in place."""
    # A mask is 0 for keys, and the bias under it may be NaN, which 0 does not cancel: a
    # masked bias is 0. A checkpoint without its masks keeps the NaN. So the key bias is
    # dropped if it is 0 or NaN in all blocks.
    biases_by_module = {}  # {module: [q, k, v]}
    masked_bias_names = [name for name in tensors if name.endswith(".masked.bias")]
    for name in masked_bias_names:
        module = name.removesuffix(".masked.bias")
        bias = tensors.pop(name)  # [3 D]: q, k and v
        mask = tensors.pop(f"{module}.masked.bias_mask", np.ones_like(bias))
        bias = np.where(mask == 0, bias.dtype.type(0), bias * mask.astype(bias.dtype))
        biases_by_module[module] = np.split(bias, 3)
    key_biases = [k for _, k, _ in biases_by_module.values()]
    drops_key_biases = all(np.all((k == 0) | np.isnan(k)) for k in key_biases)
    for module, (q, k, v) in biases_by_module.items():
        if drops_key_biases:
            tensors[f"{module}.q_bias"] = q
            tensors[f"{module}.v_bias"] = v
        else:
            tensors[f"{module}.qkv.bias"] = np.concatenate([q, k, v])


def _split_packed_layers(tensors):
    """Split an attention pool's stacked projections and packed SwiGLUs, in place."""
    for leaf in ("weight", "bias"):
        qkv = tensors.pop(f"attn_pool.qkv.{leaf}", None)
        if qkv is not None:
            q, *kv = np.split(qkv, 3)  # of the outputs, the first axis
            tensors[f"attn_pool.q.{leaf}"] = q
            tensors[f"attn_pool.kv.{leaf}"] = np.concatenate(kv)
    for name in [name for name in tensors if name.endswith(".mlp.fc1.weight")]:
        module = name.removesuffix(".fc1.weight")
        has_gate = f"{module}.fc1_g.weight" in tensors
        # A packed first layer has twice the outputs the second layer reads.
        fc2_weight = tensors.get(f"{module}.fc2.weight", np.zeros(0))  # [D, width]
        packed_shape = (2 * fc2_weight.shape[-1],) if fc2_weight.ndim == 2 else None
        is_packed = tensors[name].shape[:1] == packed_shape
        if not has_gate and not is_packed:
            continue
        for leaf in ("weight", "bias"):
            fc1 = tensors.pop(f"{module}.fc1.{leaf}", None)
            if fc1 is None:
                continue
            linear = fc1
            if not has_gate:  # packed: the gate is the first half (DINOv2's SwiGLUFFN)
                gate, linear = np.split(fc1, 2)
                tensors[f"{module}.fc1_g.{leaf}"] = gate
            tensors[f"{module}.fc1_x.{leaf}"] = linear


def _add_class_position(tensors):
    """Add the class token's position to the token, for DINOv2's registers, in place."""
    # DINOv2 inserts its registers after adding positions. In a model with registers
    # timm and this package have positions for patches only.
    registers = tensors.pop("register_tokens", np.zeros(0))
    if not registers.size:
        return
    tensors["reg_token"] = registers
    positions = tensors.get("pos_embed")  # [1, N, D]
    class_token = tensors.get("cls_token")
    if positions is None or class_token is None:
        return
    # The sum is in float32, because half precision would round it.
    class_position = positions[:, :1].astype(np.float32)
    tensors["cls_token"] = class_token.astype(np.float32) + class_position
    tensors["pos_embed"] = positions[:, 1:]


def _rename_head_and_token(tensors):
    """Give the head and DeiT's distillation token timm's names, in place.

    A head may be a projection or SigLIP's, which reads the mean of the patches.
    """
    # Without a head of its own, DeiT's distillation token acts as a register.
    if "distillation_token" in tensors:
        token_name = "dist_token" if "head_dist.weight" in tensors else "reg_token"
        tensors[token_name] = tensors.pop("distillation_token")
    projection = tensors.pop("projection.weight", None)
    if projection is not None:
        zeros = np.zeros(len(projection), projection.dtype)  # weight: [outputs, D]
        tensors["head.weight"] = projection
        tensors["head.bias"] = tensors.pop("projection.bias", zeros)
    if "mean_head.weight" in tensors:
        # CLIP's reads the patches' mean, and leaves its class token unused.
        if "cls_token" in tensors:
            raise InputError("CLIPForImageClassification is not supported")
        # SiglipForImageClassification does not use its attention pool.
        for name in [name for name in tensors if name.startswith("attn_pool.")]:
            del tensors[name]
        for leaf in ("weight", "bias"):
            tensors[f"head.{leaf}"] = tensors.pop(f"mean_head.{leaf}")
