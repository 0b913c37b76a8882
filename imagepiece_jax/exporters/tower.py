"""Folders that other programs load: `PROGRAM_LAYOUTS`, one entry per program.

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
from imagepiece_jax.exporters.program_interface import TowerInterface
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.record import as_json
from imagepiece_jax.weights.file_names import CONFIG_FILE, PREPROCESSOR_FILE
from imagepiece_jax.weights.transformers_config import (
    INTERPOLATION_OF_RESAMPLE,
    RESCALE_FACTOR,
)

# {dtype: end of the graph's name}, as transformers.js adds it for fp32, fp16 and q8
DTYPE_SUFFIXES = {"float32": "", "float16": "_fp16", "int8": "_quantized"}
# What a head gives.
VECTOR_HEAD, REGRESSION_HEAD = "vectors", "regressed numbers"
SOFTMAX_HEAD, SIGMOID_HEAD = "classes with softmax", "classes with sigmoid"
# A classifier's fields in config.json, and the end of its architecture's name.
CLASSIFIER_FIELDS = ("id2label", "label2id", "num_labels", "problem_type")
CLASSIFIER_ENDING = "ForImageClassification"
PILLOW_FILTERS = {name: number for number, name in INTERPOLATION_OF_RESAMPLE.items()}


@dataclasses.dataclass(frozen=True)
class ProgramLayout:
    """What one program loads. Functions take the model.

    outputs: {name of an output: array of TowerInterface}
    graph: path of the graph in the folder; {folder} is the folder's name, and {dtype}
        an entry of DTYPE_SUFFIXES, for programs that choose a type by the file's name
    image: name of the graph's input
    heads: head kinds that the program takes, such as VECTOR_HEAD
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
    heads: tuple[str, ...] = (VECTOR_HEAD,)
    files: Callable[[Pretrained], dict[str, Any]] = lambda vit: {}
    metadata: Callable[[Pretrained], dict[str, str]] = lambda vit: {}
    crops: tuple[str, ...] = CROP_MODES
    takes_pixels: bool = False
    gathers: bool = True


def find_graph_file(
    folder: pathlib.Path, layout: str, vit: Pretrained, dtype: str = "float32"
) -> pathlib.Path:
    """Path of the graph in a layout's folder."""
    folder_name = folder.resolve().name
    graph_path = PROGRAM_LAYOUTS[layout].graph
    if callable(graph_path):
        graph_path = graph_path(vit)
    if "{folder}" in graph_path and not re.fullmatch("[a-z0-9_]+", folder_name):
        raise InputError(
            f"out is {folder}, but {layout} reads folders whose names have lower-case "
            "letters, digits and underscores alone"
        )
    return folder / graph_path.format(folder=folder_name, dtype=DTYPE_SUFFIXES[dtype])


def make_interface(vit: Pretrained, layout: str, takes_pixels: bool) -> TowerInterface:
    """Make the input and outputs of a layout's graph.

    takes_pixels: uint8 images [batch, H, W, 3]; else floats [batch, 3, H, W],
        normalized by the loading program
    Raises InputError for images or a head that the program does not take.
    """
    program_layout = PROGRAM_LAYOUTS[layout]
    head_text = head = head_kind(vit)
    if head not in program_layout.heads:
        advice = ""
        if VECTOR_HEAD in program_layout.heads:
            head_text = f"{vit.config.num_classes} {head}"
            advice = "; num_classes=0 (--num-classes 0) removes the head"
        raise InputError(
            f"layout is {layout!r}, which takes {' or '.join(program_layout.heads)}, "
            f"but the weights give {head_text}{advice}"
        )
    preprocessing = vit.preprocessing
    height, width = preprocessing.shape
    if height != width:
        raise InputError(f"image_size is {height, width}; a layout needs square images")
    is_cropped = (
        preprocessing.resizes and preprocessing.resized_size != preprocessing.shape
    )
    if is_cropped and preprocessing.crop_mode not in program_layout.crops:
        raise InputError(
            f"images are resized to {preprocessing.resized_size[0]} pixels and "
            f"cropped, but {layout} resizes to {height} pixels and does not crop; load "
            "with crop=1 (--crop 1)"
        )
    if vit.config.arch.pool == "none":
        raise InputError("pool is 'none', so the model has no image vector")
    if takes_pixels and not program_layout.takes_pixels:
        raise InputError(f"pixels is for immich; {layout} normalizes images itself")
    array_of_output = program_layout.outputs
    if callable(array_of_output):
        array_of_output = array_of_output(vit)
    return TowerInterface(vit, program_layout.image, array_of_output, takes_pixels)


def check_layout_folder(
    folder: pathlib.Path, layout: str, vit: Pretrained, new_file: pathlib.Path
) -> None:
    """Check a layout's folder: only an export for this layout is replaced.

    An export for the layout may get further dtypes of its model. A saved model has JSON
    files of the same names, and an export without a layout may lie beside it.

    new_file: the graph to write
    """
    is_export = False
    for dtype in DTYPE_SUFFIXES:
        graph_file = find_graph_file(folder, layout, vit, dtype)
        graph_facts = read_facts(graph_file)
        if graph_facts.get("layout") == layout:
            is_export = True
            if graph_file != new_file and graph_facts["model"] != as_json(vit.config):
                raise InputError(f"{graph_file} is of another model; choose a folder")

    def is_ours(file: pathlib.Path) -> bool:
        # Ctrl-C may have left the graph's folder, which may lie in `folder`, empty.
        is_graph_folder = file == new_file.parent and file.is_dir()
        return is_export or (is_graph_folder and not any(file.iterdir()))

    check_own_files("out", folder, f"an export for {layout}", is_ours)


def head_kind(vit: Pretrained) -> str:
    """What the head gives, in the words of `ProgramLayout.heads`."""
    if not vit.config.head.is_classifier:
        return VECTOR_HEAD
    kinds = {"softmax": SOFTMAX_HEAD, "sigmoid": SIGMOID_HEAD, None: REGRESSION_HEAD}
    return kinds[vit.config.head.activation]


def is_siglip(vit: Pretrained) -> bool:
    """Whether the vector is SigLIP's: pooled by a learned probe, without a head."""
    return vit.config.arch.pool == "map" and not vit.config.num_classes


def label_names(vit: Pretrained, separator: str = " ") -> list[str]:
    """Names of all classes; a missing name is transformers' LABEL_i.

    separator: between a name's words
    """
    class_names = vit.class_names or [None] * vit.config.num_classes
    name_words = []
    for label, name in enumerate(class_names):
        name_words.append((name or "").split() or [f"LABEL_{label}"])
    return [separator.join(words) for words in name_words]


def transformers_graph_path(vit: Pretrained) -> str:
    """Name of the graph: optimum's for image-text models, or its usual one."""
    graph_name = "model"
    if vit.config.head.is_projection or is_siglip(vit):
        graph_name = "vision_model"
    return f"onnx/{graph_name}{{dtype}}.onnx"


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
    return {
        PREPROCESSOR_FILE: processor_fields(vit),
        CONFIG_FILE: transformers_config_fields(vit),
    }


def sentence_transformers_files(vit: Pretrained) -> dict[str, Any]:
    """transformers' files, and two that make one module of the graph.

    optimum-onnx hands over `last_hidden_state` alone, which here is the vector.
    """
    image_call = {"method": "forward", "method_output_name": "last_hidden_state"}
    module_type = "sentence_transformers.models.Transformer"
    return {
        **transformers_files(vit),
        "modules.json": [{"idx": 0, "name": "0", "path": "", "type": module_type}],
        # Older versions say that they are older.
        "config_sentence_transformers.json": {
            "__version__": {"sentence_transformers": "5.4.0"}
        },
        "sentence_bert_config.json": {
            "modality_config": {"image": image_call},
            "module_output_name": "sentence_embedding",
        },
    }


def photoprism_metadata(vit: Pretrained) -> dict[str, str]:
    """PhotoPrism's properties. Means and deviations are of pixels from 0 to 255."""
    preprocessing = vit.preprocessing
    resize_mode, short_edge = "center-crop", min(preprocessing.shape)
    if preprocessing.resizes:
        short_edge = min(preprocessing.resized_size)
    if preprocessing.crop_mode == "squash":
        resize_mode = "stretch"
    filter_names = {"bicubic": "bicubic", "bilinear": "linear"}
    properties = {
        "layout": "NCHW",
        "color_order": "RGB",
        "mean": json.dumps([255 * value for value in vit.config.mean]),
        "std_dev": json.dumps([255 * value for value in vit.config.std]),
        "resize_mode": resize_mode,
        "resize_short_edge": str(short_edge),
        "interpolation": filter_names[preprocessing.interpolation],
        "outputs_logits": "true",
    }
    return {f"photoprism.{name}": value for name, value in properties.items()}


def model_api_metadata(vit: Pretrained) -> dict[str, str]:
    """model_api's properties: rt_info, whose path is the words of the name.

    Lists are words, too, so names of classes get underscores.
    """
    preprocessing = vit.preprocessing
    resize_type = "crop"
    if preprocessing.crop_mode == "squash":
        resize_type = "standard"
    filter_names = {"bicubic": "CUBIC", "bilinear": "LINEAR"}
    properties = {
        "model_type": "Classification",
        "labels": " ".join(label_names(vit, "_")),
        "multilabel": str(head_kind(vit) == SIGMOID_HEAD),
        "resize_type": resize_type,
        "interpolation_mode": filter_names[preprocessing.interpolation],
        "reverse_input_channels": "True",  # it reads images as OpenCV does, in BGR
        "mean_values": " ".join(str(255 * value) for value in vit.config.mean),
        "scale_values": " ".join(str(255 * value) for value in vit.config.std),
    }
    return {f"model_info {name}": value for name, value in properties.items()}


def open_clip_fields(vit: Pretrained) -> dict:
    """OpenCLIP's preprocess_cfg fields. OpenCLIP resizes to the crop's size."""
    preprocessing = vit.preprocessing
    resize_mode = "squash" if preprocessing.crop_mode == "squash" else "shortest"
    return {
        "size": list(preprocessing.shape),
        "mode": "RGB",
        "mean": list(vit.config.mean),
        "std": list(vit.config.std),
        "interpolation": preprocessing.interpolation,
        "resize_mode": resize_mode,
        "fill_color": 0,
    }


def processor_fields(vit: Pretrained) -> dict:
    """Fields of transformers' preprocessor_config.json."""
    preprocessing = vit.preprocessing
    height, width = preprocessing.shape
    resized_height, resized_width = preprocessing.resized_size
    resized_size = {"shortest_edge": resized_height}
    if preprocessing.crop_mode == "squash":
        # A height and a width squash the image.
        resized_size = {"height": resized_height, "width": resized_width}
    return {
        # All clients know CLIP's processor: fastembed does not know ViT's.
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": preprocessing.resizes,
        "size": resized_size,
        "resample": PILLOW_FILTERS[preprocessing.interpolation],
        "do_center_crop": preprocessing.resizes,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": RESCALE_FACTOR,
        "do_normalize": True,
        "image_mean": list(vit.config.mean),
        "image_std": list(vit.config.std),
    }


def transformers_config_fields(vit: Pretrained) -> dict:
    """Fields of transformers' config.json: the weights folder's, or written ones.

    Image size and classes are the model's, because `load` may have changed them.
    """
    config = vit.config
    fields = read_transformers_fields(vit)
    is_classifier = config.head.is_classifier
    if not is_classifier and "id2label" in fields:  # the head was left out
        for field in ("architectures", *CLASSIFIER_FIELDS):
            fields.pop(field, None)
    for section in (fields, fields.get("vision_config", {})):
        if "image_size" in section:
            section["image_size"] = min(vit.preprocessing.shape)
    fields = fields or make_transformers_fields(vit)
    if is_classifier:
        architectures = fields.get("architectures") or [""]
        if not architectures[0].endswith(CLASSIFIER_ENDING):
            fields["architectures"] = [f"ViT{CLASSIFIER_ENDING}"]
        fields["problem_type"] = config.problem_type
        names = label_names(vit)
        fields["id2label"] = dict(enumerate(names))
        fields["label2id"] = {name: label for label, name in enumerate(names)}
    return fields


def read_transformers_fields(vit: Pretrained) -> dict:
    """Read the weights folder's config.json if it is transformers', else {}."""
    if vit.origin.path is None:
        return {}
    config_file = pathlib.Path(vit.origin.path) / CONFIG_FILE
    if not config_file.is_file():
        return {}
    fields = read_json(config_file)
    return fields if "model_type" in fields else {}


def make_transformers_fields(vit: Pretrained) -> dict:
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


PROGRAM_LAYOUTS = {
    "immich": ProgramLayout(
        outputs={"embedding": "embedding"},
        graph="visual/model.onnx",
        image="image",
        files=lambda vit: {"visual/preprocess_cfg.json": open_clip_fields(vit)},
        crops=(),
        takes_pixels=True,
    ),
    "transformers": ProgramLayout(  # transformers.js and optimum
        outputs=transformers_outputs,
        graph=transformers_graph_path,
        heads=(VECTOR_HEAD, SOFTMAX_HEAD, SIGMOID_HEAD, REGRESSION_HEAD),
        files=transformers_files,
        gathers=False,
    ),
    "fastembed": ProgramLayout(
        outputs={"image_embeds": "image_embeds"},
        files=lambda vit: {PREPROCESSOR_FILE: processor_fields(vit)},
    ),
    "sentence_transformers": ProgramLayout(
        outputs={"last_hidden_state": "image_embeds"},
        graph="onnx/model.onnx",
        files=sentence_transformers_files,
    ),
    "photoprism": ProgramLayout(
        outputs={"logits": "logits"},
        graph="{folder}.onnx",
        image="input",
        heads=(SOFTMAX_HEAD,),
        files=lambda vit: {"labels.txt": "\n".join(label_names(vit)) + "\n"},
        metadata=photoprism_metadata,
        crops=("center",),
    ),
    "model_api": ProgramLayout(  # OpenVINO's
        outputs={"logits": "logits"},
        image="input",
        heads=(SOFTMAX_HEAD, SIGMOID_HEAD),
        metadata=model_api_metadata,
        crops=(),
    ),
}
