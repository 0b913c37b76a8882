"""Folders that other programs load: `LAYOUTS`, one entry per program.

Sources: the loaders of immich's machine learning service, transformers.js, fastembed's
ImageEmbedding, sentence-transformers with optimum-onnx, PhotoPrism's packages classify
and onnx, and OpenVINO's model_api.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

from imagepiece_jax.common.files import check_own_files, read_json
from imagepiece_jax.data.preprocessing import CROP_MODES
from imagepiece_jax.errors import InputError
from imagepiece_jax.exporters.program_facts import read_facts
from imagepiece_jax.exporters.program_outputs import TowerOutputs
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.record import as_json
from imagepiece_jax.weights.file_names import CONFIG_FILE, PREPROCESSOR_FILE
from imagepiece_jax.weights.transformers_config import (
    INTERPOLATION_OF_RESAMPLE,
    RESCALE_FACTOR,
)

# {dtype: end of the graph's name}, as transformers.js adds it for fp32, fp16 and q8
SUFFIX = {"float32": "", "float16": "_fp16", "int8": "_quantized"}
# What a head gives.
VECTORS, NUMBERS = "vectors", "regressed numbers"
SOFTMAX, SIGMOID = "classes with softmax", "classes with sigmoid"
# A classifier's fields in config.json, and the end of its architecture's name.
OF_CLASSES = ("id2label", "label2id", "num_labels", "problem_type")
CLASSIFIER = "ForImageClassification"
FILTERS = {
    name: number for number, name in INTERPOLATION_OF_RESAMPLE.items()
}  # Pillow's filter numbers


@dataclasses.dataclass(frozen=True)
class Layout:
    """What one program loads. Functions take the model.

    outputs: {name of an output: array of TowerOutputs}
    graph: path of the graph in the folder; {folder} is the folder's name, and {dtype}
        an entry of SUFFIX, for programs that choose a type by the file's name
    image: name of the graph's input
    heads: heads that the program takes, among VECTORS, SOFTMAX, SIGMOID and NUMBERS
    files: {path in the folder: JSON value, or text}
    metadata: properties inside the ONNX file
    crops: modes of Preprocessing in which the program resizes beyond the image size,
        and crops
    takes_pixels: the program may hand over uint8 images
    gathers: as for `export`; False for programs that run on any device
    """

    outputs: dict[str, str] | Callable[[Pretrained], dict[str, str]]
    graph: str | Callable[[Pretrained], str] = "model.onnx"
    image: str = "pixel_values"
    heads: tuple[str, ...] = (VECTORS,)
    files: Callable[[Pretrained], dict[str, Any]] = lambda vit: {}
    metadata: Callable[[Pretrained], dict[str, str]] = lambda vit: {}
    crops: tuple[str, ...] = CROP_MODES
    takes_pixels: bool = False
    gathers: bool = True


def graph_file(
    folder: pathlib.Path, layout: str, vit: Pretrained, dtype: str = "float32"
) -> pathlib.Path:
    """Path of the graph in a layout's folder."""
    name = folder.resolve().name
    graph = LAYOUTS[layout].graph
    if callable(graph):
        graph = graph(vit)
    if "{folder}" in graph and not re.fullmatch("[a-z0-9_]+", name):
        raise InputError(
            f"out is {folder}, but {layout} reads folders whose names have lower-case "
            "letters, digits and underscores alone"
        )
    return folder / graph.format(folder=name, dtype=SUFFIX[dtype])


def outputs(vit: Pretrained, layout: str, pixels: bool) -> TowerOutputs:
    """Inputs and outputs of a layout's graph.

    pixels: uint8 images [batch, H, W, 3]; else floats [batch, 3, H, W], normalized by
        the loading program
    Raises InputError for images or a head that the program does not take.
    """
    entry = LAYOUTS[layout]
    head = head_of(vit)
    if head not in entry.heads:
        advice = ""
        if VECTORS in entry.heads:
            head = f"{vit.config.num_classes} {head}"
            advice = "; num_classes=0 (--num-classes 0) removes the head"
        raise InputError(
            f"layout is {layout!r}, which takes {' or '.join(entry.heads)}, but the "
            f"weights give {head}{advice}"
        )
    prepared = vit.preprocessing
    height, width = prepared.shape
    if height != width:
        raise InputError(f"image_size is {height, width}; a layout needs square images")
    is_cropped = prepared.resizes and prepared.resized != prepared.shape
    if is_cropped and prepared.crop_mode not in entry.crops:
        raise InputError(
            f"images are resized to {prepared.resized[0]} pixels and cropped, but "
            f"{layout} resizes to {height} pixels and does not crop; load with crop=1 "
            "(--crop 1)"
        )
    if vit.config.arch.pool == "none":
        raise InputError("pool is 'none', so the model has no image vector")
    if pixels and not entry.takes_pixels:
        raise InputError(f"pixels is for immich; {layout} normalizes images itself")
    arrays = entry.outputs
    if callable(arrays):
        arrays = arrays(vit)
    return TowerOutputs(vit, entry.image, arrays, pixels)


def check_folder(
    folder: pathlib.Path, layout: str, vit: Pretrained, out: pathlib.Path
) -> None:
    """Check a layout's folder: only an export for this layout is replaced.

    An export for the layout may get further dtypes of its model. A saved model has JSON
    files of the same names, and an export without a layout may lie beside it.

    out: the graph to write
    """
    is_export = False
    for dtype in SUFFIX:
        graph = graph_file(folder, layout, vit, dtype)
        facts = read_facts(graph)
        if facts.get("layout") == layout:
            is_export = True
            if graph != out and facts["model"] != as_json(vit.config):
                raise InputError(f"{graph} is of another model; choose a folder")

    def ours(file):
        # Ctrl-C may have left an empty folder.
        is_place = file == out.parent and file.is_dir()
        return is_export or (is_place and not any(file.iterdir()))

    check_own_files("out", folder, f"an export for {layout}", ours)


def head_of(vit: Pretrained) -> str:
    """What the head gives, in the words of `Layout.heads`."""
    if not vit.config.head.is_classifier:
        return VECTORS
    kinds = {"softmax": SOFTMAX, "sigmoid": SIGMOID, None: NUMBERS}
    return kinds[vit.config.head.activation]


def is_siglip(vit: Pretrained) -> bool:
    """Whether the vector is SigLIP's: pooled by a learned probe, without a head."""
    return vit.config.arch.pool == "map" and not vit.config.num_classes


def label_names(vit: Pretrained, space: str = " ") -> list[str]:
    """Names of all classes; a missing name is transformers' LABEL_i.

    space: between a name's words
    """
    names = vit.class_names or [None] * vit.config.num_classes
    words = []
    for label, name in enumerate(names):
        words.append((name or "").split() or [f"LABEL_{label}"])
    return [space.join(each) for each in words]


def transformers_graph(vit: Pretrained) -> str:
    """Name of the graph: optimum's for image-text models, or its usual one."""
    name = "model"
    if vit.config.head.is_projection or is_siglip(vit):
        name = "vision_model"
    return f"onnx/{name}{{dtype}}.onnx"


def transformers_outputs(vit: Pretrained) -> dict[str, str]:
    """Outputs of transformers' class for this head."""
    names = ["last_hidden_state", "pooler_output"]
    if vit.config.head.is_classifier:
        names = ["logits"]
    elif vit.config.head.is_projection:
        names = ["image_embeds"]
    return {name: name for name in names}


def transformers_files(vit: Pretrained) -> dict[str, Any]:
    """transformers' two JSON files."""
    return {PREPROCESSOR_FILE: processor_fields(vit), CONFIG_FILE: config_fields(vit)}


def sentence_transformers_files(vit: Pretrained) -> dict[str, Any]:
    """transformers' files, and two that make one module of the graph.

    optimum-onnx hands over `last_hidden_state` alone, which here is the vector.
    """
    image = {"method": "forward", "method_output_name": "last_hidden_state"}
    kind = "sentence_transformers.models.Transformer"
    return {
        **transformers_files(vit),
        "modules.json": [{"idx": 0, "name": "0", "path": "", "type": kind}],
        # Older versions say that they are older.
        "config_sentence_transformers.json": {
            "__version__": {"sentence_transformers": "5.4.0"}
        },
        "sentence_bert_config.json": {
            "modality_config": {"image": image},
            "module_output_name": "sentence_embedding",
        },
    }


def photoprism_metadata(vit: Pretrained) -> dict[str, str]:
    """PhotoPrism's properties. Means and deviations are of pixels from 0 to 255."""
    preprocessing = vit.preprocessing
    mode, short_edge = "center-crop", min(preprocessing.shape)
    if preprocessing.resizes:
        short_edge = min(preprocessing.resized)
    if preprocessing.crop_mode == "squash":
        mode = "stretch"
    filters = {"bicubic": "bicubic", "bilinear": "linear"}
    values = {
        "layout": "NCHW",
        "color_order": "RGB",
        "mean": json.dumps([255 * value for value in vit.config.mean]),
        "std_dev": json.dumps([255 * value for value in vit.config.std]),
        "resize_mode": mode,
        "resize_short_edge": str(short_edge),
        "interpolation": filters[preprocessing.interpolation],
        "outputs_logits": "true",
    }
    return {f"photoprism.{name}": value for name, value in values.items()}


def model_api_metadata(vit: Pretrained) -> dict[str, str]:
    """model_api's properties: rt_info, whose path is the words of the name.

    Lists are words, too, so names of classes get underscores.
    """
    preprocessing = vit.preprocessing
    resize_type = "crop"
    if preprocessing.crop_mode == "squash":
        resize_type = "standard"
    filters = {"bicubic": "CUBIC", "bilinear": "LINEAR"}
    values = {
        "model_type": "Classification",
        "labels": " ".join(label_names(vit, "_")),
        "multilabel": str(head_of(vit) == SIGMOID),
        "resize_type": resize_type,
        "interpolation_mode": filters[preprocessing.interpolation],
        "reverse_input_channels": "True",  # it reads images as OpenCV does, in BGR
        "mean_values": " ".join(str(255 * value) for value in vit.config.mean),
        "scale_values": " ".join(str(255 * value) for value in vit.config.std),
    }
    return {f"model_info {name}": value for name, value in values.items()}


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
        "resample": FILTERS[preprocessing.interpolation],
        "do_center_crop": preprocessing.resizes,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": RESCALE_FACTOR,
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
    is_classifier = config.head.is_classifier
    if not is_classifier and "id2label" in fields:  # the head was left out
        for name in ("architectures", *OF_CLASSES):
            fields.pop(name, None)
    for part in (fields, fields.get("vision_config", {})):
        if "image_size" in part:
            part["image_size"] = min(vit.preprocessing.shape)
    fields = fields or written_fields(vit)
    if is_classifier:
        kinds = fields.get("architectures") or [""]
        if not kinds[0].endswith(CLASSIFIER):
            fields["architectures"] = [f"ViT{CLASSIFIER}"]
        fields["problem_type"] = config.problem_type
        names = label_names(vit)
        fields["id2label"] = dict(enumerate(names))
        fields["label2id"] = {name: i for i, name in enumerate(names)}
    return fields


def stored_fields(vit: Pretrained) -> dict:
    """Read the weights folder's config.json if it is transformers', else {}."""
    if vit.origin.path is None:
        return {}
    file = pathlib.Path(vit.origin.path) / CONFIG_FILE
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
    if vit.config.head.is_projection:
        fields["model_type"] = "clip_vision_model"
        fields["projection_dim"] = config.num_classes
    elif is_siglip(vit):
        fields["model_type"] = "siglip_vision_model"
    return fields


LAYOUTS = {
    "immich": Layout(
        outputs={"embedding": "embedding"},
        graph="visual/model.onnx",
        image="image",
        files=lambda vit: {"visual/preprocess_cfg.json": open_clip_fields(vit)},
        crops=(),
        takes_pixels=True,
    ),
    "transformers": Layout(  # transformers.js and optimum
        outputs=transformers_outputs,
        graph=transformers_graph,
        heads=(VECTORS, SOFTMAX, SIGMOID, NUMBERS),
        files=transformers_files,
        gathers=False,
    ),
    "fastembed": Layout(
        outputs={"image_embeds": "image_embeds"},
        files=lambda vit: {PREPROCESSOR_FILE: processor_fields(vit)},
    ),
    "sentence_transformers": Layout(
        outputs={"last_hidden_state": "image_embeds"},
        graph="onnx/model.onnx",
        files=sentence_transformers_files,
    ),
    "photoprism": Layout(
        outputs={"logits": "logits"},
        graph="{folder}.onnx",
        image="input",
        heads=(SOFTMAX,),
        files=lambda vit: {"labels.txt": "\n".join(label_names(vit)) + "\n"},
        metadata=photoprism_metadata,
        crops=("center",),
    ),
    "model_api": Layout(  # OpenVINO's
        outputs={"logits": "logits"},
        image="input",
        heads=(SOFTMAX, SIGMOID),
        metadata=model_api_metadata,
        crops=(),
    ),
}
