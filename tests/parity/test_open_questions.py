"""Open questions of config files, answered by their libraries.

Models are small, with random weights. The truth is transformers' pipeline, and timm's
transforms and readers of checkpoints.
"""

import dataclasses
import json

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from timm.layers import SwiGLUPacked
from timm.models import _hub, eva

import imagepiece_jax
from tests.helpers.parity_record import distance, noise, run_jax, run_torch
from tools import originals

pytestmark = pytest.mark.filterwarnings("ignore")  # from transformers' saving
TINY = {"depth": 2, "embed_dim": 48, "num_heads": 4, "img_size": 28}
SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
SMALL |= dict(intermediate_size=64, image_size=32, patch_size=8)
LABELS = {0: "cat", 1: "dog", 2: "grass"}
SQUARE = {"height": 32, "width": 32}
MULTI = "multi_label_classification"


def picture(height, width):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def prepare_image(vit, image):
    pixels = vit.preprocessing(np.asarray(image))[None]
    return imagepiece_jax.normalize(pixels, vit.config.mean, vit.config.std)


def pipeline_scores(folder, image, **fields):
    pipe = transformers.pipeline("image-classification", model=str(folder), **fields)
    by_name = {row["label"]: row["score"] for row in pipe(image)}
    return [by_name[name] for name in LABELS.values()]


@pytest.mark.parametrize("architectures", [["ViTModel"], None])
@pytest.mark.parametrize("problem_type", [MULTI, "single_label_classification"])
def test_a_head_has_its_labels_for_any_architectures_field(
    tmp_path, architectures, problem_type
):
    """transformers names a classifier only when it saves the model itself."""
    config = transformers.ViTConfig(
        **SMALL, id2label=LABELS, problem_type=problem_type, architectures=architectures
    )
    model = originals.randomize(transformers.ViTForImageClassification(config))
    processor = transformers.ViTImageProcessor(size=SQUARE)
    model.config.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    image = picture(32, 32)
    theirs = pipeline_scores(tmp_path, image, image_processor=processor)
    vit = imagepiece_jax.load(tmp_path)
    logits = run_jax(vit, prepare_image(vit, image)).logits
    assert vit.class_names == (*LABELS.values(),)
    probabilities = vit.config.head.probabilities(logits)
    np.testing.assert_allclose(probabilities[0], theirs, atol=1e-3)
    torch.save(model.vit.state_dict(), tmp_path / "pytorch_model.bin")
    vit = imagepiece_jax.load(tmp_path)
    assert (vit.config.num_classes, vit.class_names) == (0, None)


@pytest.mark.parametrize("problem_type", [None, MULTI, "regression"])
def test_the_head_of_a_timm_wrapper(tmp_path, problem_type):
    images = timm.get_pretrained_cfg("vit_tiny_patch16_224").to_dict()
    images = {k: v for k, v in images.items() if v is not None}
    images["input_size"] = [3, 32, 32]
    config = transformers.TimmWrapperConfig(
        architecture="vit_tiny_patch16_224",
        model_args=TINY | {"img_size": 32},
        pretrained_cfg=images,
        id2label=LABELS,
        problem_type=problem_type,
    )
    kind = transformers.TimmWrapperForImageClassification
    originals.randomize(kind(config)).save_pretrained(tmp_path)
    image = picture(50, 40)
    theirs = pipeline_scores(tmp_path, image)
    vit = imagepiece_jax.load(tmp_path)
    logits = run_jax(vit, prepare_image(vit, image)).logits
    outputs = logits
    if problem_type != "regression":
        outputs = vit.config.head.probabilities(logits)
    np.testing.assert_allclose(outputs[0], theirs, rtol=1e-3, atol=1e-3)


def test_a_timm_wrapper_without_a_head(tmp_path):
    timm_model = originals.randomize(timm.create_model("test_vit"))
    _hub.save_for_hf(timm_model, tmp_path / "timm", safe_serialization=True)
    path = tmp_path / "timm" / "config.json"
    config = json.loads(path.read_text())
    del config["model_args"]  # as on the hub
    path.write_text(json.dumps(config))
    model = transformers.AutoModel.from_pretrained(tmp_path / "timm").eval()
    model.save_pretrained(tmp_path / "wrapper")
    images = noise(2, 160, 160, 3)
    theirs = run_torch(lambda x: model(x).pooler_output, images)
    vit = imagepiece_jax.load(tmp_path / "wrapper")
    assert distance(run_jax(vit, images).pooled, theirs) < 1e-5


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("vit_tiny_patch16_224", {"dynamic_img_size": True}),
        ("vit_small_patch16_dinov3", {}),
    ],
)
def test_a_flexible_models_images_have_input_size(tmp_path, name, arguments):
    """Images have input_size, and positions img_size."""
    size = {"img_size": 64, "num_classes": 5}
    model = originals.randomize(timm.create_model(name, **TINY | size | arguments))
    data = {"input_size": (3, 96, 96)}
    _hub.save_for_hf(model, tmp_path, safe_serialization=True, data_config=data)
    timm_model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(timm_model))
    image = picture(120, 150)
    with torch.no_grad():
        theirs = timm_model(transform(image)[None])
    vit = imagepiece_jax.load(tmp_path)
    assert (vit.image_size, vit.origin.image_size) == (96, 64)
    assert distance(run_jax(vit, prepare_image(vit, image)).logits, theirs) < 1e-5
    assert imagepiece_jax.load(tmp_path, image_size=32).image_size == 32


def test_an_unnamed_gated_mlp_loads_by_a_config(tmp_path):
    """UNI2-h's and H0-mini's config.json, with docs/weight_files.md's remedy."""
    arguments = {"mlp_ratio": 5.33334, "reg_tokens": 8, "no_embed_class": True}
    arguments |= TINY | {"patch_size": 14, "init_values": 1e-5, "num_classes": 0}
    layers = {"mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU}
    model = timm.create_model("vit_giant_patch14_224", **arguments, **layers)
    originals.randomize(model)
    images = {"input_size": [3, 28, 28], "mean": [0.5] * 3, "std": [0.5] * 3}
    file = {"architecture": "vit_giant_patch14_224", "num_classes": 0}
    file |= {"model_args": arguments, "pretrained_cfg": images}
    (tmp_path / "config.json").write_text(json.dumps(file))
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    config = imagepiece_jax.read_config(tmp_path).with_arch(mlp="swiglu")
    vit = imagepiece_jax.load(tmp_path, config=config)
    pixels = noise(2, 28, 28, 3)
    assert distance(run_jax(vit, pixels).pooled, run_torch(model, pixels)) < 1e-5


def small_config(name, model):
    """A public name's config in a small model's sizes."""
    hidden = model.blocks[0].mlp.fc2.in_features
    size = {"embed_dim": 48, "depth": 2, "num_heads": 4, "mlp_ratio": hidden / 48}
    config = dataclasses.replace(imagepiece_jax.read_config(name), **size)
    return config.with_preprocessing(image_size=model.patch_embed.img_size)


@pytest.mark.parametrize("lm_head", [True, False])
def test_eva02s_pretrained_file(tmp_path, lm_head):
    """Its last norm is the pooled vector's, like in timm's reader."""
    name = "eva02_tiny_patch14_224.mim_in22k"
    model = originals.randomize(timm.create_model(name, **TINY))
    renamed = {"mlp.fc1_g": "mlp.w1", "mlp.fc1_x": "mlp.w2", "mlp.fc2": "mlp.w3"}
    file = {"mask_token": torch.ones(1, 1, 48)}
    for tensor_name, tensor in model.state_dict().items():
        for timm_part, authors_part in (renamed | {"fc_norm": "norm"}).items():
            tensor_name = tensor_name.replace(timm_part, authors_part)
        file[tensor_name] = tensor
    if lm_head:
        file |= {"lm_head.weight": torch.ones(9, 48), "lm_head.bias": torch.ones(9)}
    model.load_state_dict(eva.checkpoint_filter_fn(dict(file), model))
    torch.save({"model": file}, tmp_path / "w.pt")
    vit = imagepiece_jax.load(tmp_path / "w.pt", config=small_config(name, model))
    images = noise(2, 28, 28, 3)
    assert distance(run_jax(vit, images).pooled, run_torch(model, images)) < 1e-5
