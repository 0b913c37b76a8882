"""Tensor names of every supported library, translated to timm's names and back.

Canonical names are timm's, with SwiGLU's first layer split in two: mlp.fc1_g, the
gate, and mlp.fc1_x. `models.timm_tensors` turns canonical tensors into variables.
"""

import dataclasses
import os
import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from imagepiece_jax.errors import InputError
from imagepiece_jax.models import registry
from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.config import ViTConfig
from imagepiece_jax.weights.tensor_files import NamedArrays, open_tensors, weights_title


@dataclasses.dataclass(frozen=True)
class Naming:
    """The tensor names of one library's checkpoints."""

    library: str  # the library in error messages
    # One tensor name identifies a library: all its checkpoints have it. The text before
    # the name, such as "vision_model." or "backbone.", is the vision tower's prefix.
    mark: str
    blocks: str  # pattern for the start of a block's names, with the block number
    # {pattern for a block's modules or tensors: timm's name}; "." matches only a dot
    inner: dict[str, str]
    outer: Mapping[str, str]  # like `inner`, for the rest of the tower
    # like `inner`, for names without the tower's prefix
    outside: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ignored: str = r"(?!)"  # pattern for the start of names that no model needs
    is_strict: bool = True  # unlisted names are errors; False: they are timm's already
    # The last norm may apply to the pooled vector (fc_norm). Its name does not tell.
    may_norm_pooled: bool = False

    def translate_name(self, name: str, prefix: str) -> str | None:
        """Translate a tensor's name to timm's; None if no model needs the tensor.

        Some results are not timm's names yet: `_canonical_tensors` finishes them.
        Raises InputError for a tensor that the library does not have.
        """
        in_tower = name.startswith(prefix)
        tower_name = name.removeprefix(prefix)
        if re.match(self.ignored if in_tower else IGNORED_NAMES, tower_name):
            return None
        start = ""
        timm_name = None
        if in_tower and (match := re.match(self.blocks, tower_name)):
            start = f"blocks.{match[1] or SCANNED_BLOCK}."
            tower_name = tower_name[match.end() :]
            timm_name = _look_up_name(tower_name, self.inner)
        elif in_tower:
            timm_name = _look_up_name(tower_name, self.outer)
        if timm_name is None and not start:
            timm_name = _look_up_name(name, self.outside)
        if timm_name is None and in_tower and not self.is_strict:
            timm_name = tower_name
        if not timm_name:
            tower = f" outside the tower {prefix[:-1]}" if prefix else ""
            raise InputError(f"tensor {name} is not part of {self.library}{tower}")
        return start + timm_name


def _look_up_name(name: str, table: Mapping[str, str]) -> str | None:
    """Translate a name by a table of tensors and modules; None if it is not listed."""
    for pattern, template in table.items():
        pattern = rf"(?:{pattern})(?P<leaf>.\w+)?".replace(".", r"\.")
        if match := re.fullmatch(pattern, name):
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
    blocks=r"(?:encoder\.layer|layers|(?:model\.)?layer)\.(\d+)\.",
    inner={
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
    outer={
        "embeddings.patch_embeddings(?:.projection)?": "patch_embed.proj",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.(cls_token|register_tokens)": r"\1",
        "embeddings.distillation_token": "distillation_token",
        "(?:layer)?norm": "norm",
    },
    outside={"(?:cls_)?classifier": "head", "distillation_classifier": "head_dist"},
    ignored=r"embeddings\.mask_token$|pooler\.dense\.",  # BEiT's pooler has a norm
)
TIMM_NAMING = Naming(
    # Also the original DeiT, MAE, DINO, DINOv2, EVA and EVA-02, and OpenCLIP with a
    # timm trunk. DINOv2 saves blocks in chunks: blocks.CHUNK.BLOCK, where BLOCK counts
    # through all chunks. Rotary positions are computed from the grid, except for
    # learned ones (freqs). local_cls_norm serves the small crops in DINOv3's training.
    library="timm's models",
    mark="patch_embed.proj.weight",
    blocks=r"blocks\.(?:\d+\.)?(\d+)\.",
    inner={
        "gamma_([12])": r"ls\1.gamma",
        f"attn.{QKV_PATTERN}": r"attn.\1",
        "attn.inner_attn_ln": "attn.norm",
        "mlp.w1": "mlp.fc1_g",
        "mlp.w2": "mlp.fc1_x",
        "mlp.w12": "mlp.fc1",
        "mlp.w3": "mlp.fc2",
        "mlp.ffn_ln": "mlp.norm",
    },
    outer={},
    outside={"visual.head.proj": "projection"},
    ignored=r"decoder_(embed|blocks|norm|pos_embed|pred)(\.|$)|"
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
        blocks=r"Transformer\.encoderblock(?:_(\d+))?\.",
        inner={
            "LayerNorm_0": "norm1",
            "LayerNorm_[12]": "norm2",
            f"{FLAX_ATTENTION}.{QKV_PATTERN}": r"attn.\1",
            f"{FLAX_ATTENTION}.out": "attn.proj",
            "MlpBlock_[03].Dense_0": "mlp.fc1",
            "MlpBlock_[03].Dense_1": "mlp.fc2",
        },
        outer={
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
        outside={},
    ),
    Naming(
        library="transformers' CLIP and SigLIP",
        mark="embeddings.patch_embedding.weight",
        blocks=r"encoder\.layers\.(\d+)\.",
        inner={
            f"self_attn.{QKV_PATTERN}": r"attn.\1",
            "self_attn.out_proj": "attn.proj",
            "layer_(norm[12])": r"\1",
            "(mlp.fc[12])": r"\1",
        },
        outer={
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
        outside={"visual_projection": "projection", "classifier": "mean_head"},
        ignored=r"embeddings\.position_ids$",
    ),
    Naming(
        library="OpenAI's CLIP and OpenCLIP",
        mark="class_embedding",
        blocks=r"transformer\.resblocks\.(\d+)\.",
        inner={
            "ln_([12])": r"norm\1",
            "attn.in_proj_(weight|bias)": r"attn.qkv.\1",
            "attn.out_proj": "attn.proj",
            "mlp.c_fc": "mlp.fc1",
            "mlp.c_proj": "mlp.fc2",
        },
        outer={
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
        inner=TIMM_NAMING.inner | {"attn.qkv.(bias|bias_mask)": r"attn.masked.\1"},
        outer={"storage_tokens": "reg_token"},
        outside={},
        # rope_embed.periods is an error in other namings.
        ignored=rf"{TIMM_NAMING.ignored}|rope_embed\.periods$",
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
_NNX_ENDING = ".value"  # at the end of all names in a saved Flax NNX state
SCANNED_BLOCK = "all"  # stands for the block number in a tensor of scanned blocks


def shape_error(name: str, shape: tuple[int, ...], allowed: str) -> InputError:
    """Make the InputError for a tensor of the wrong shape."""
    return InputError(f"tensor {name} is of {shape}; it must be {allowed}")


def read_timm_tensors(
    path: str | os.PathLike | Mapping[str, Any],
    checkpoint: str | None = None,
    config: ViTConfig | None = None,
) -> NamedArrays:
    """Read the tensors of a weights file, {timm's name: array}.

    Tensors that no model needs are never read.

    path: a file, or a state dict in memory
    checkpoint: the key of the wanted model in a file with several models
    config: as for `with_timm_names`
    """
    with open_tensors(path, checkpoint) as unread:
        naming, names = find_timm_names(unread.tensors)
        state_dict = unread.read(names)
    try:
        return _translate_tensors(state_dict, naming, names, config)
    except InputError as error:
        raise InputError(f"{weights_title(path)}: {error}") from error


def find_timm_names(names: Collection[str]) -> tuple[Naming, dict[str, str]]:
    """Find (the naming of a checkpoint, {name: timm's name}).

    Text towers, decoders, poolers and self-distillation heads are left out.
    """
    dotted = _dotted_names(names)
    naming, prefix = _find_naming([*dotted.values()])
    translated = {name: naming.translate_name(dotted[name], prefix) for name in names}
    return naming, {k: timm_name for k, timm_name in translated.items() if timm_name}


def with_timm_names(
    state_dict: Mapping[str, np.ndarray], config: ViTConfig | None = None
) -> NamedArrays:
    """Translate a state dict of any library to {timm's name: array}.

    timm's own names are not checked here, but in `timm_tensors.from_timm`.

    config: resolves names with two meanings, such as a last norm before or after the
        pool; None: names are taken literally
    """
    return _translate_tensors(state_dict, *find_timm_names(state_dict), config)


def _translate_tensors(
    state_dict: Mapping[str, np.ndarray],
    naming: Naming,
    names: Mapping[str, str],
    config: ViTConfig | None,
) -> NamedArrays:
    """Translate tensors by `naming` and `names`, the results of `find_timm_names`."""
    renamed = {}
    file_names = {}  # {timm's name: name in the file}
    for name in [name for name in names if name in state_dict]:
        blocks = _split_scanned_blocks(names[name], state_dict[name])
        for timm_name, tensor in blocks.items():
            if timm_name in file_names:
                raise InputError(
                    f"tensors {file_names[timm_name]} and {name} are the same part, "
                    f"{timm_name}"
                )
            file_names[timm_name] = name
            renamed[timm_name] = tensor
    has_mask_token = renamed.pop("mask_token", None) is not None
    query = renamed.get("blocks.0.attn.q.kernel", np.zeros(0))  # Flax: [D, heads, d]
    if config and query.ndim == 3 and query.shape[1] != config.num_heads:
        raise InputError(
            f"num_heads is {config.num_heads}, but its tensors are of "
            f"{query.shape[1]} heads"
        )
    try:
        tensors = _canonical_tensors(renamed)
    except InputError:
        raise
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"its tensors' shapes do not fit {naming.library}: {error}"
        ) from error
    if config is None:
        return tensors
    # A mask token beside q_bias marks EVA-02's pretrained weights. Their last norm may
    # be an fc_norm, because the public configs describe the fine-tuned models.
    is_pretrained_eva = has_mask_token and "blocks.0.attn.q_bias" in tensors
    may_norm_pooled = naming.may_norm_pooled or is_pretrained_eva
    return _fit_norm_and_biases(tensors, config.arch, may_norm_pooled)


def _fit_norm_and_biases(
    tensors: NamedArrays, arch: Architecture, may_norm_pooled: bool
) -> NamedArrays:
    """Let `arch` decide between norm and fc_norm, and whether zero biases stay."""
    # Without arch.qkv_bias the attention biases are dropped, but only if all are 0, so
    # that no learned bias is lost.
    if may_norm_pooled and arch.fc_norm and "fc_norm.weight" not in tensors:
        tensors = {re.sub(r"^norm\.", "fc_norm.", k): v for k, v in tensors.items()}
    bias_pattern = re.compile(r"blocks\.\d+\.attn\.([qv]_bias|qkv\.bias)")
    biases = [name for name in tensors if bias_pattern.fullmatch(name)]
    if arch.qkv_bias or any(np.any(tensors[name]) for name in biases):
        return tensors
    return {name: tensors[name] for name in tensors if name not in biases}


def pack_for_timm(
    tensors: Mapping[str, np.ndarray], arch: Architecture, name: str | None
) -> NamedArrays:
    """Convert canonical tensors (`timm_tensors.to_timm`) for timm's own classes.

    name: timm's architecture; any other name is allowed for a model timm lacks
    """
    is_eva = registry.timm_class(name) == "Eva"
    # timm keeps q, k and v apart in EVA-02's models with sub-LN (an MLP norm and no key
    # bias). It packs both halves of a SwiGLU without a norm in models with position
    # embeddings.
    keeps_qkv_apart = arch.mlp_norm and not arch.key_bias
    renamed = {}
    for name, tensor in tensors.items():
        if is_eva:
            name = re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", name)
        attention, qkv, _ = name.partition("qkv.weight")
        if qkv and keeps_qkv_apart:
            for letter, third in zip("qkv", np.split(tensor, 3), strict=True):
                renamed[f"{attention}{letter}_proj.weight"] = third
            continue
        if keeps_qkv_apart:
            name = re.sub(r"\.attn\.([qv])_bias$", r".attn.\1_proj.bias", name)
        renamed[name] = tensor
    if arch.mlp == "swiglu" and arch.positions and not arch.mlp_norm:
        gates = [name for name in renamed if ".mlp.fc1_g." in name]
        for gate in gates:
            halves = [renamed.pop(gate), renamed.pop(gate.replace("_g.", "_x."))]
            renamed[gate.replace("_g.", ".")] = np.concatenate(halves)
    return renamed


def _dotted_names(names: Collection[str]) -> dict[str, str]:
    """Map names to dotted names without the parts wrappers added."""
    dotted = {}
    for name in names:
        parts = name.replace("/", ".").split(".")
        dotted[name] = ".".join([part for part in parts if part not in _INSERTED_PARTS])
    common_start = os.path.commonprefix([*dotted.values()])
    prefix = common_start.removesuffix(re.sub(_FRONT_PATTERN, "", common_start))
    dotted = {k: name.removeprefix(prefix) for k, name in dotted.items()}
    if all(name.endswith(_NNX_ENDING) for name in dotted.values()):
        dotted = {k: name.removesuffix(_NNX_ENDING) for k, name in dotted.items()}
    return dotted


def _find_naming(names: Collection[str]) -> tuple[Naming, str]:
    """Find (naming, prefix of the vision tower) from a checkpoint's tensor names."""
    for naming in NAMINGS:
        prefixes = []
        for name in names:
            if f".{name}".endswith(f".{naming.mark}"):
                prefixes.append(name.removesuffix(naming.mark))
        if len(prefixes) > 1:
            prefixes.sort()
            towers = [prefix.rstrip(".") or "one" for prefix in prefixes]
            raise InputError(
                f"it holds {len(prefixes)} vision towers, {', '.join(towers)}; it must "
                "hold one"
            )
        if prefixes:
            return naming, prefixes[0]
    if any(re.match(TIMM_NAME_PATTERN, name) for name in names):
        return TIMM_NAMING, ""
    examples = ", ".join([*names][:NUM_SHOWN_NAMES])
    raise InputError(f"it has tensors of an unsupported model, such as {examples}")


def _split_scanned_blocks(name: str, tensor: np.ndarray) -> NamedArrays:
    """Split a tensor of scanned blocks into {name: tensor} with one entry per block."""
    _, scanned, leaf_name = name.partition(f"blocks.{SCANNED_BLOCK}.")
    if not scanned:
        return {name: tensor}
    if tensor.ndim == 0:
        raise shape_error(name, tensor.shape, "an array whose first axis is blocks")
    return {f"blocks.{i}.{leaf_name}": tensor[i] for i in range(len(tensor))}


def _canonical_tensors(tensors: NamedArrays) -> NamedArrays:
    """Bring renamed tensors of any library into the canonical form."""
    canonical = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "kernel":
            canonical[f"{module}.weight"] = _torch_weight(module, tensor)
        elif leaf == "scale":
            canonical[f"{module}.weight"] = tensor
        elif leaf == "bias":
            canonical[name] = tensor.reshape(-1)  # Flax has an extra axis of heads
        elif name == "pos_embed" and tensor.ndim == 1:
            canonical[name] = tensor  # malformed; make_variables reports it
        elif name in TOKEN_ROWS and tensor.ndim != 3:
            canonical[name] = tensor.reshape(1, -1, tensor.shape[-1])
        elif name == "reg_token" and not tensor.size:  # DINOv3's may be empty
            continue
        else:
            canonical[name] = tensor
    _stack_projections(canonical)
    _apply_bias_masks(canonical)
    _split_packed_layers(canonical)
    _add_class_position(canonical)
    _name_head(canonical)
    return canonical


# Token rows, [1, N, D] in timm.
TOKEN_ROWS = """
    cls_token distillation_token register_tokens pos_embed attn_pool.latent
""".split()


def _torch_weight(module: str, kernel: np.ndarray) -> np.ndarray:
    """Turn a Flax kernel into a PyTorch weight: outputs first, heads flattened."""
    if kernel.ndim == 4:
        return kernel.transpose(3, 2, 0, 1)
    # q, k and v: [D, heads, d]; the output projection: [heads, d, D].
    if kernel.ndim == 3:
        num_outputs = kernel[0].size
        if module.endswith(".proj"):
            num_outputs = kernel.shape[-1]
        kernel = kernel.reshape(-1, num_outputs)
    return kernel.T


def _stack_projections(tensors: NamedArrays) -> None:
    """Stack the blocks' q, k and v, and an attention pool's k and v, in place.

    Without a key bias, the other biases become timm's q_bias and v_bias.
    """
    for name in [*tensors]:
        match = re.fullmatch(r"(.*\battn|attn_pool)\.([qkv])\.(weight|bias)", name)
        if not match or name not in tensors:
            continue
        module, letter, leaf = match.groups()
        letters = "qkv"
        if module == "attn_pool":
            letters = "kv"
        if letter not in letters:
            continue
        names = {part: f"{module}.{part}.{leaf}" for part in letters}
        lacking_letters = [part for part in letters if names[part] not in tensors]
        if lacking_letters == ["k"] and leaf == "bias" and letters == "qkv":
            tensors[f"{module}.q_bias"] = tensors.pop(names["q"])
            tensors[f"{module}.v_bias"] = tensors.pop(names["v"])
            continue
        if lacking_letters:
            raise InputError(f"it has {name}, but not {names[lacking_letters[0]]}")
        projections = [tensors.pop(part) for part in names.values()]
        tensors[f"{module}.{letters}.{leaf}"] = np.concatenate(projections)


def _apply_bias_masks(tensors: NamedArrays) -> None:
    """Apply DINOv3's masks to the q, k, v biases, in place."""
    # A mask is 0 for keys, and the bias under it may be NaN, which 0 does not cancel.
    # So the key bias is dropped if it is 0 or NaN in all blocks.
    thirds = {}  # {module: [q, k, v]}
    masked_biases = [name for name in tensors if name.endswith(".masked.bias")]
    for name in masked_biases:
        module = name.removesuffix(".masked.bias")
        bias = tensors.pop(name)
        mask = tensors.pop(f"{module}.masked.bias_mask", np.ones_like(bias))
        if mask.shape != bias.shape:
            allowed = f"{bias.shape}, as qkv.bias"
            raise shape_error(f"{module}.qkv.bias_mask", mask.shape, allowed)
        bias = np.where(mask == 0, bias.dtype.type(0), bias * mask.astype(bias.dtype))
        thirds[module] = _split_equally(f"{module}.qkv.bias", bias, 3)
    all_keys_hidden = True
    for _, k, _ in thirds.values():
        is_hidden = (k == 0) | np.isnan(k)
        all_keys_hidden = all_keys_hidden and is_hidden.all()
    for module, (q, k, v) in thirds.items():
        if all_keys_hidden:
            tensors[f"{module}.q_bias"] = q
            tensors[f"{module}.v_bias"] = v
        else:
            tensors[f"{module}.qkv.bias"] = np.concatenate([q, k, v])


def _split_equally(name: str, tensor: np.ndarray, num_parts: int) -> list[np.ndarray]:
    """Split the tensor `name` into equal parts."""
    if tensor.ndim == 0 or len(tensor) % num_parts:
        raise shape_error(name, tensor.shape, f"{num_parts} equal parts")
    return np.split(tensor, num_parts)


def _split_packed_layers(tensors: NamedArrays) -> None:
    """Split an attention pool's stacked projections and packed SwiGLUs, in place."""
    for leaf in ("weight", "bias"):
        qkv = tensors.pop(f"attn_pool.qkv.{leaf}", None)
        if qkv is not None:
            q, *kv = _split_equally(f"attn_pool.qkv.{leaf}", qkv, 3)
            tensors[f"attn_pool.q.{leaf}"] = q
            tensors[f"attn_pool.kv.{leaf}"] = np.concatenate(kv)
    first_layers = [name for name in tensors if name.endswith(".mlp.fc1.weight")]
    for name in first_layers:
        module = name.removesuffix(".fc1.weight")
        has_gate = f"{module}.fc1_g.weight" in tensors
        # A packed first layer has twice the outputs the second layer reads.
        last = tensors.get(f"{module}.fc2.weight", np.zeros(0))
        packed_shape = (2 * last.shape[-1],) if last.ndim == 2 else None
        is_packed = tensors[name].shape[:1] == packed_shape
        if not has_gate and not is_packed:
            continue
        for leaf in ("weight", "bias"):
            tensor = tensors.pop(f"{module}.fc1.{leaf}", None)
            if tensor is None:
                continue
            if not has_gate:  # packed: the gate is the first half (DINOv2's SwiGLUFFN)
                gate, tensor = _split_equally(f"{module}.fc1.{leaf}", tensor, 2)
                tensors[f"{module}.fc1_g.{leaf}"] = gate
            tensors[f"{module}.fc1_x.{leaf}"] = tensor


def _add_class_position(tensors: NamedArrays) -> None:
    """Add the class token's position to the token, for DINOv2's registers, in place."""
    # DINOv2 inserts its registers after adding positions. In a model with registers
    # timm and this package have positions for patches only.
    registers = tensors.pop("register_tokens", np.zeros(0))
    if not registers.size:
        return
    tensors["reg_token"] = registers
    positions = tensors.get("pos_embed")
    class_token = tensors.get("cls_token")
    if positions is None or class_token is None:
        return
    class_position = positions[:, :1].astype(np.float32)
    tensors["cls_token"] = class_token.astype(np.float32) + class_position
    tensors["pos_embed"] = positions[:, 1:]


def _name_head(tensors: NamedArrays) -> None:
    """Rename a projection, or SigLIP's mean-of-patches head, to the head, in place."""
    # Without a head of its own, DeiT's distillation token acts as a register.
    if "distillation_token" in tensors:
        token_name = "dist_token" if "head_dist.weight" in tensors else "reg_token"
        tensors[token_name] = tensors.pop("distillation_token")
    projection = tensors.pop("projection.weight", None)
    if projection is not None:
        zeros = np.zeros(len(projection), projection.dtype)
        tensors["head.weight"] = projection
        tensors["head.bias"] = tensors.pop("projection.bias", zeros)
    if "mean_head.weight" in tensors:
        if "cls_token" in tensors:
            raise InputError(
                "its classifier reads the mean of the patches before the last norm "
                "(CLIPForImageClassification), which is not supported"
            )
        # SiglipForImageClassification does not use its attention pool.
        pool_names = [name for name in tensors if name.startswith("attn_pool.")]
        for name in pool_names:
            del tensors[name]
        for leaf in ("weight", "bias"):
            tensors[f"head.{leaf}"] = tensors.pop(f"mean_head.{leaf}")
    head = tensors.get("head.weight")
    norm = tensors.get("norm.weight")
    if head is None or norm is None or head.ndim != 2:
        return
    # The width comes from a block's norm, because the last norm may have another shape.
    width = len(tensors.get("blocks.0.norm1.weight", norm))
    if width == head.shape[1]:
        return
    raise InputError(
        f"tensor head.weight reads {head.shape[1]} values per image, but the tokens "
        f"have {width} (DINOv2's classifiers read the mean of the patches too)"
    )
