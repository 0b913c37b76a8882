"""Exported towers in onnxruntime, by name against the outputs of their own library."""

import json

import numpy as np
import pytest
from PIL import Image

import imagepiece_jax
from imagepiece_jax.export.export import export

for package in ("onnx", "onnxruntime", "torch", "transformers", "open_clip"):
    pytest.importorskip(package)

import onnxruntime  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

from tests.parity import test_open_clip  # noqa: E402
from tests.parity.test_hub_folders import LABELS, MODELS, clip  # noqa: E402
from tools import client_pixels, originals  # noqa: E402
from tools.originals import config  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, when it saves
PROCESSOR = transformers.CLIPImageProcessor(
    size={"shortest_edge": originals.SIDE}, crop_size=originals.SIDE
)


def both_towers(model, x):
    found = model.vision_model(x)
    if hasattr(model, "visual_projection"):
        found["image_embeds"] = model.visual_projection(found.pooler_output)
    return found


def one_tower(model, x):
    return model(x)


FILES = {"vision": "onnx/vision_model.onnx", "other": "onnx/model.onnx"}
# {name: (model, its outputs, the graph's file, names of its outputs)}
TOWERS = {
    "CLIP": (
        lambda: transformers.CLIPModel(clip()),
        *(both_towers, "vision", ["image_embeds"]),
    ),
    "CLIP with a projection": (
        lambda: transformers.CLIPVisionModelWithProjection(originals.clip_config()),
        *(one_tower, "vision", ["image_embeds"]),
    ),
    "CLIP without one": (
        lambda: transformers.CLIPVisionModel(originals.clip_config()),
        *(one_tower, "other", ["last_hidden_state", "pooler_output"]),
    ),
    "SigLIP": (
        lambda: transformers.SiglipModel(originals.siglip_config()),
        *(both_towers, "vision", ["last_hidden_state", "pooler_output"]),
    ),
    "DINOv2": (
        lambda: transformers.Dinov2Model(config(transformers.Dinov2Config)),
        *(one_tower, "other", ["last_hidden_state", "pooler_output"]),
    ),
    "DINOv3": (
        lambda: transformers.DINOv3ViTModel(config(transformers.DINOv3ViTConfig)),
        *(one_tower, "other", ["last_hidden_state", "pooler_output"]),
    ),
    "a classifier": (
        lambda: transformers.ViTForImageClassification(
            config(transformers.ViTConfig, id2label=LABELS)
        ),
        *(one_tower, "other", ["logits"]),
    ),
    "a classifier without names": (
        lambda: transformers.ViTForImageClassification(
            config(transformers.ViTConfig, num_labels=3)
        ),
        *(one_tower, "other", ["logits"]),
    ),
}


@pytest.mark.parametrize("name", TOWERS)
def test_a_graph_has_the_outputs_of_transformers(tmp_path, name):
    make, forward, file, names = TOWERS[name]
    model = originals.randomize(make())
    model.save_pretrained(tmp_path / "model")
    PROCESSOR.save_pretrained(tmp_path / "model")
    vit = imagepiece_jax.load(tmp_path / "model")
    out = export(vit, tmp_path / "out", layout="transformers")
    assert out == tmp_path / "out" / FILES[file]
    content = (tmp_path / "model" / "config.json").read_text()
    found = (tmp_path / "out" / "config.json").read_text()
    assert json.loads(found) == json.loads(content)
    session = onnxruntime.InferenceSession(out)
    images = originals.images().transpose(0, 3, 1, 2)
    ours = session.run(names, {"pixel_values": images})
    assert len(session.get_outputs()) == len(names)
    with torch.no_grad():
        theirs = forward(model, torch.from_numpy(images))
    for output, array in zip(names, ours, strict=True):
        np.testing.assert_allclose(array, theirs[output].numpy(), rtol=0, atol=1e-5)


def test_a_folder_that_save_wrote_has_a_config_of_transformers(tmp_path):
    """Its own config.json has the same name and other fields."""
    model, _, processor, _ = MODELS["dinov2"]()
    originals.randomize(model).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    vit = imagepiece_jax.load(tmp_path / "model")
    saved = imagepiece_jax.load(imagepiece_jax.save(vit, tmp_path / "saved"))
    export(saved, tmp_path / "out", layout="transformers")
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (found["model_type"], found["hidden_size"]) == ("vit", originals.WIDTH)


@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_a_tower_of_open_clip(tmp_path, mode):
    """From files to vectors, with a mean, a filter and a mode that no default has."""
    content, model = test_open_clip.made({}, {"quick_gelu": True})
    test_open_clip.saved(tmp_path / "clip", content, model)
    file = tmp_path / "clip" / "open_clip_config.json"
    content = json.loads(file.read_text())
    content["preprocess_cfg"] |= {"resize_mode": mode, "interpolation": "bilinear"}
    file.write_text(json.dumps(content))
    vit = imagepiece_jax.load(tmp_path / "clip")
    out = export(vit, tmp_path / "out", layout="immich")
    fields = json.loads((out.parent / "preprocess_cfg.json").read_text())
    for field, value in content["preprocess_cfg"].items():
        assert fields[field] == value
    prepare = client_pixels.by_open_clip(fields)
    pictures = map(Image.fromarray, client_pixels.pictures()[1:-1])
    images = np.stack([prepare(picture) for picture in pictures])
    with torch.no_grad():
        theirs = model.encode_image(torch.from_numpy(images), normalize=True).numpy()
    session = onnxruntime.InferenceSession(out)
    (ours,) = session.run(None, {"image": images})
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
