"""Folders that other programs load: `PROGRAM_LAYOUTS`, one entry per program.

Sources: the loaders of immich's machine learning service, transformers.js, and
fastembed's ImageEmbedding.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from imagepiece_jax.common.checks import refuse_any
from imagepiece_jax.common.files import check_own_files, read_json
from imagepiece_jax.data.preprocessing import CROP_MODES
from imagepiece_jax.errors import InputError
from imagepiece_jax.exporters.program_facts import read_facts
from imagepiece_jax.exporters.program_interface import TowerInterface
from imagepiece_jax.models.config import ViTConfig
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.weights.folder_files import CONFIG_FILE, PREPROCESSOR_FILE
from imagepiece_jax.weights.transformers_config import (
    INTERPOLATION_OF_RESAMPLE,
    RESCALE_FACTOR,
)

# {dtype: end of the graph's name}, as transformers.js adds it for fp32, fp16 and q8
DTYPE_SUFFIXES = {"float32": "", "float16": "_fp16", "int8": "_quantized"}
# A classifier's fields in config.json, and the end of its architecture's name.
CLASSIFIER_FIELDS = ("id2label", "label2id", "num_labels", "problem_type")
CLASSIFIER_ENDING = "ForImageClassification"
PILLOW_FILTERS = {name: number for number, name in INTERPOLATION_OF_RESAMPLE.items()}


@dataclasses.dataclass(frozen=True)
class ProgramLayout:
    """What one program loads.

    outputs: names of TowerInterface's outputs
    files: {path in the folder: function of the Pretrained that makes its JSON value}
    graph: path of the graph in the folder; {name} is optimum's for the model, {dtype}
        an entry of DTYPE_SUFFIXES, for programs that choose a type by the file's name
    image: name of the graph's input
    takes_classes: the program also takes logits, of which it computes a softmax
    crops: modes of Preprocessing in which the program resizes beyond the image size,
        and crops
    takes_pixels: the program may hand over uint8 images
    """

    outputs: Callable[[ViTConfig], list[str]]
    files: Mapping[str, Callable[[Pretrained], dict[str, Any]]]
    graph: str
    image: str = "pixel_values"
    takes_classes: bool = False
    crops: tuple[str, ...] = CROP_MODES
    takes_pixels: bool = False


def find_graph_file(
    folder: pathlib.Path, layout: str, pretrained: Pretrained, dtype: str = "float32"
) -> pathlib.Path:
    """Path of the graph in a layout's folder."""
    name = "vision_model" if is_image_text_tower(pretrained.config) else "model"
    graph_path = PROGRAM_LAYOUTS[layout].graph
    return folder / graph_path.format(name=name, dtype=DTYPE_SUFFIXES[dtype])


def make_interface(
    pretrained: Pretrained, layout: str, batch_size: int | None, takes_pixels: bool
) -> TowerInterface:
    """Make the input and outputs of a layout's graph.

    batch_size, takes_pixels: as in ProgramInterface. Floats are normalized by the
        loading program.
    Raises InputError for images or a head that the program does not take.
    """
    program_layout = PROGRAM_LAYOUTS[layout]
    config = pretrained.config
    head = config.head
    # transformers.js takes a softmax whatever problem_type says: 1 for a single class.
    takes_head = program_layout.takes_classes and head.activation == "softmax"
    preprocessing = config.preprocessing
    height, width = preprocessing.shape
    is_cropped = preprocessing.resizes and preprocessing.resized_size != (height, width)
    is_cropped &= preprocessing.crop_mode not in program_layout.crops
    refuses_pixels = takes_pixels and not program_layout.takes_pixels
    classes_text = f"{head.num_classes} classes ({head.problem_type})"
    way_out = "num_classes=0 (--num-classes 0) removes them"
    head_problem = f"layout {layout} does not take {classes_text}; {way_out}"
    side_problem = f"image_size is {height, width}; layouts need square images"
    refuse_any(
        (head.is_classifier and not takes_head, head_problem),
        (height != width, side_problem),
        (is_cropped, f"{layout} does not crop images; load with crop=1 (--crop 1)"),
        (config.arch.pool == "none", "pool is 'none': no image vector"),
        (refuses_pixels, f"pixels is for immich; {layout} normalizes images itself"),
    )
    return TowerInterface(
        pretrained,
        batch_size=batch_size,
        takes_pixels=takes_pixels,
        input_name=program_layout.image,
        channels_first=not takes_pixels,
        tower_outputs=program_layout.outputs(config),
    )


def check_layout_folder(
    folder: pathlib.Path, layout: str, pretrained: Pretrained, new_file: pathlib.Path
) -> None:
    """Check that a folder is empty, or an export of this model and layout.

    It may get further dtypes of its model, which has the same files beside the graphs.
    """
    exported_graphs = []
    for dtype in DTYPE_SUFFIXES:
        graph_file = find_graph_file(folder, layout, pretrained, dtype)
        if read_facts(graph_file).get("layout") == layout:
            exported_graphs.append(graph_file)
    if {*exported_graphs} - {new_file}:
        for path, make_fields in PROGRAM_LAYOUTS[layout].files.items():
            file = folder / path
            # As JSON: a tuple is a list there, and a number as a key is text.
            fields = json.loads(json.dumps(make_fields(pretrained)))
            if file.exists() and read_json(file) != fields:
                raise InputError(f"{folder} has another model, with another {path}")

    def is_ours(file):
        # Ctrl-C may have left the graph's folder, which may lie in `folder`, empty.
        is_graph_folder = file == new_file.parent and file.is_dir()
        return bool(exported_graphs) or (is_graph_folder and not any(file.iterdir()))

    check_own_files("out", folder, f"an export for {layout}", is_ours)


def is_image_text_tower(config: ViTConfig) -> bool:
    """Whether a model is CLIP's, or SigLIP's, which a learned probe pools."""
    is_siglip = config.arch.pool == "map" and not config.num_classes
    return config.head.is_projection or is_siglip


def transformers_outputs(config: ViTConfig) -> list[str]:
    """Outputs of transformers' class for this head."""
    if config.head.is_classifier:
        return ["logits"]
    if config.head.is_projection:
        return ["image_embeds"]
    return ["last_hidden_state", "pooler_output"]


def open_clip_fields(pretrained: Pretrained) -> dict:
    """OpenCLIP's preprocess_cfg fields. OpenCLIP resizes to the crop's size."""
    config = pretrained.config
    is_squashed = config.preprocessing.crop_mode == "squash"
    return {
        "size": list(config.preprocessing.shape),
        "mode": "RGB",
        "mean": list(config.mean),
        "std": list(config.std),
        "interpolation": config.preprocessing.interpolation,
        "resize_mode": "squash" if is_squashed else "shortest",
        "fill_color": 0,
    }


def processor_fields(pretrained: Pretrained) -> dict:
    """Fields of transformers' preprocessor_config.json."""
    preprocessing = pretrained.preprocessing
    height, width = preprocessing.shape
    resized_height, resized_width = preprocessing.resized_size
    resized_size = {"shortest_edge": resized_height}  # images are square here
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
        "image_mean": list(pretrained.config.mean),
        "image_std": list(pretrained.config.std),
    }


def config_fields(pretrained: Pretrained) -> dict:
    """Fields of transformers' config.json: the weights folder's, or written ones.

    Image size and classes are the model's, because `load` may have changed them.
    """
    config = pretrained.config
    is_classifier = config.head.is_classifier
    fields: dict[str, Any] = {}
    if pretrained.origin.path is not None:
        config_file = pathlib.Path(pretrained.origin.path, CONFIG_FILE)
        fields = read_json(config_file) if config_file.is_file() else {}
    if "model_type" in fields:  # transformers'
        if not is_classifier and "id2label" in fields:  # the head was left out
            for field in ("architectures", *CLASSIFIER_FIELDS):
                fields.pop(field, None)
        for section in (fields, fields.get("vision_config", {})):
            if "image_size" in section:
                # A side: layouts take square images.
                section["image_size"] = min(pretrained.preprocessing.shape)
    else:
        fields = {
            "model_type": "vit",
            "hidden_size": config.embed_dim,
            "num_hidden_layers": config.depth,
            "num_attention_heads": config.num_heads,
            "patch_size": config.patch_size,
            "image_size": min(pretrained.preprocessing.shape),
        }
        if config.head.is_projection:
            fields["model_type"] = "clip_vision_model"
            fields["projection_dim"] = config.num_classes
        elif is_image_text_tower(config):
            fields["model_type"] = "siglip_vision_model"
    if is_classifier:
        architectures = fields.get("architectures") or [""]
        if not architectures[0].endswith(CLASSIFIER_ENDING):  # such as "ViTModel"
            fields["architectures"] = [f"ViT{CLASSIFIER_ENDING}"]
        fields["problem_type"] = config.problem_type
        class_names = pretrained.class_names or [None] * config.num_classes
        labels = [name or f"LABEL_{index}" for index, name in enumerate(class_names)]
        fields["id2label"] = dict(enumerate(labels))
        fields["label2id"] = {label: index for index, label in enumerate(labels)}
    return fields


PROGRAM_LAYOUTS = {
    "immich": ProgramLayout(
        outputs=lambda config: ["embedding"],
        files={"visual/preprocess_cfg.json": open_clip_fields},
        graph="visual/model.onnx",
        image="image",
        crops=(),
        takes_pixels=True,
    ),
    "transformers": ProgramLayout(  # transformers.js and optimum
        outputs=transformers_outputs,
        files={PREPROCESSOR_FILE: processor_fields, CONFIG_FILE: config_fields},
        graph="onnx/{name}{dtype}.onnx",
        takes_classes=True,
    ),
    "fastembed": ProgramLayout(
        outputs=lambda config: ["image_embeds"],
        files={PREPROCESSOR_FILE: processor_fields},
        graph="model.onnx",
    ),
}
