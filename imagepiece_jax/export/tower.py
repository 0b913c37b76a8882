"""Visual towers in the folder layouts of photo search programs.

immich        OUT/visual/model.onnx and OUT/visual/preprocess_cfg.json, as OpenCLIP's
transformers  OUT/onnx/vision_model.onnx for a projection (CLIP) and SigLIP, else
              OUT/onnx/model.onnx, with config.json and preprocessor_config.json, for
              transformers.js and optimum. The dtype is part of the name (SUFFIX)
fastembed     OUT/model.onnx and OUT/preprocessor_config.json

immich and fastembed look for one name, whatever the dtype.

Source: the loaders of immich's machine learning service, transformers.js and
fastembed's ImageEmbedding.
"""

import pathlib

from imagepiece_jax.common.checks import check_choice
from imagepiece_jax.common.files import read_json
from imagepiece_jax.errors import InputError
from imagepiece_jax.export.program_outputs import TowerOutputs
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.weights.file_names import CONFIG, PREPROCESSOR
from imagepiece_jax.weights.transformers_config import RESAMPLE, RESCALE

LAYOUTS = ("immich", "transformers", "fastembed")
# {dtype: end of the graph's name}, as transformers.js adds it for fp32, fp16 and q8
SUFFIX = {"float32": "", "float16": "_fp16", "int8": "_quantized"}
# A classifier's fields in config.json, and the end of its architecture's name.
OF_CLASSES = ("id2label", "label2id", "num_labels", "problem_type")
CLASSIFIER = "ForImageClassification"
NUMBERS = {name: number for number, name in RESAMPLE.items()}  # Pillow's filter numbers


def graph_file(
    folder: pathlib.Path, layout: str, vit: Pretrained, dtype: str = "float32"
) -> pathlib.Path:
    """Path of the graph in a layout's folder."""
    check_choice("layout", layout, LAYOUTS)
    if layout == "immich":
        return folder / "visual" / "model.onnx"
    if layout == "fastembed":
        return folder / "model.onnx"
    name = "model"
    if vit.has_projection or is_siglip(vit):
        name = "vision_model"
    return folder / "onnx" / f"{name}{SUFFIX[dtype]}.onnx"


def is_siglip(vit: Pretrained) -> bool:
    """Whether the vector is SigLIP's: pooled by a learned probe, without a head."""
    return vit.config.arch.pool == "map" and not vit.config.num_classes


def outputs(vit: Pretrained, layout: str, pixels: bool) -> TowerOutputs:
    """Inputs and outputs of a layout's graph.

    pixels: uint8 images [batch, H, W, 3]; else floats [batch, 3, H, W], normalized by
        the loading program
    Raises InputError for images that the layout's JSON cannot describe, and for weights
        without an image vector.
    """
    if vit.is_classifier and layout != "transformers":
        raise InputError(
            f"layout is {layout!r}, which needs vectors, but the weights' head has "
            f"{vit.config.num_classes} classes; num_classes=0 (--num-classes 0) "
            "removes the head"
        )
    prepared = vit.preprocessing
    height, width = prepared.shape
    if height != width:
        raise InputError(f"image_size is {height, width}; a layout needs square images")
    if layout == "immich" and prepared.resizes and prepared.resized != prepared.shape:
        raise InputError(
            f"images are resized to {prepared.resized[0]} pixels and cropped, but "
            f"immich resizes to {height} pixels and does not crop; load with crop=1 "
            "(--crop 1)"
        )
    if vit.config.arch.pool == "none":
        raise InputError("pool is 'none', so the model has no image vector")
    if pixels and layout != "immich":
        raise InputError(f"pixels is for immich; {layout} normalizes images itself")
    if layout == "immich":
        return TowerOutputs(vit, "image", ["embedding"], pixels)
    names = ["last_hidden_state", "pooler_output"]
    if vit.is_classifier:
        names = ["logits"]
    elif layout == "fastembed" or vit.has_projection:
        names = ["image_embeds"]
    return TowerOutputs(vit, "pixel_values", names, pixels)


def configs(
    folder: pathlib.Path, vit: Pretrained, layout: str | None
) -> dict[pathlib.Path, dict]:
    """The layout's JSON files, {path: fields}: image preparation, and the model."""
    if layout is None:
        return {}
    if layout == "immich":
        return {folder / "visual" / "preprocess_cfg.json": open_clip_fields(vit)}
    fields = {folder / PREPROCESSOR: processor_fields(vit)}
    if layout == "transformers":
        fields[folder / CONFIG] = config_fields(vit)
    return fields


def open_clip_fields(vit: Pretrained) -> dict:
    """OpenCLIP's preprocess_cfg fields. OpenCLIP resizes to the crop's size."""
    preprocessing = vit.preprocessing
    mode = "squash" if preprocessing.crop_mode == "squash" else "shortest"
    return {
        "size": list(preprocessing.shape),
        "mode": "RGB",
        "mean": list(vit.config.mean),
        "std": list(vit.config.std),
        "interpolation": preprocessing.interpolation,
        "resize_mode": mode,
        "fill_color": 0,
    }


def processor_fields(vit: Pretrained) -> dict:
    """Fields of transformers' preprocessor_config.json."""
    preprocessing = vit.preprocessing
    height, width = preprocessing.shape
    resized_height, resized_width = preprocessing.resized
    size = {"shortest_edge": resized_height}
    if preprocessing.crop_mode == "squash":
        # A height and a width squash the image.
        size = {"height": resized_height, "width": resized_width}
    return {
        # All clients know CLIP's processor: fastembed does not know ViT's.
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": preprocessing.resizes,
        "size": size,
        "resample": NUMBERS[preprocessing.interpolation],
        "do_center_crop": preprocessing.resizes,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": RESCALE,
        "do_normalize": True,
        "image_mean": list(vit.config.mean),
        "image_std": list(vit.config.std),
    }


def config_fields(vit: Pretrained) -> dict:
    """Fields of transformers' config.json: the weights folder's, or written ones.

    Image size and classes are the model's, because `load` may have changed them.
    """
    config = vit.config
    fields = stored_fields(vit)
    if not vit.is_classifier and "id2label" in fields:  # the head was left out
        for name in ("architectures", *OF_CLASSES):
            fields.pop(name, None)
    for part in (fields, fields.get("vision_config", {})):
        if "image_size" in part:
            part["image_size"] = min(vit.preprocessing.shape)
    fields = fields or written_fields(vit)
    if vit.is_classifier:
        kinds = fields.get("architectures") or [""]
        if not kinds[0].endswith(CLASSIFIER):
            fields["architectures"] = [f"ViT{CLASSIFIER}"]
        fields["problem_type"] = config.problem_type
        # missing names are transformers' LABEL_i
        names = list(vit.class_names or [None] * config.num_classes)
        for label, name in enumerate(names):
            names[label] = name or f"LABEL_{label}"
        fields["id2label"] = dict(enumerate(names))
        fields["label2id"] = {name: i for i, name in enumerate(names)}
    return fields


def stored_fields(vit: Pretrained) -> dict:
    """Read the weights folder's config.json if it is transformers', else {}."""
    if vit.source.path is None:
        return {}
    file = pathlib.Path(vit.source.path) / CONFIG
    if not file.is_file():
        return {}
    fields = read_json(file)
    return fields if "model_type" in fields else {}


def written_fields(vit: Pretrained) -> dict:
    """Make transformers' fields of a model, without its classes."""
    config = vit.config
    fields = {
        "model_type": "vit",
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "patch_size": config.patch_size,
        "image_size": min(vit.preprocessing.shape),
    }
    if vit.has_projection:
        fields["model_type"] = "clip_vision_model"
        fields["projection_dim"] = config.num_classes
    elif is_siglip(vit):
        fields["model_type"] = "siglip_vision_model"
    return fields
