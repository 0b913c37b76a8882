import json

import numpy as np
import onnxruntime
import pytest
import torch
import transformers

import imagepiece_jax
from imagepiece_jax.exporters.export import export
from tests.parity.test_hub_folders import LABELS, SIGLIP, clip, of
from tools import originals
from tools.originals import CLASSES

pytestmark = pytest.mark.filterwarnings("ignore")  # from transformers' saving
PROCESSOR = transformers.CLIPImageProcessor(
    size={"shortest_edge": originals.SIDE}, crop_size=originals.SIDE
)


def named_outputs(model, x):
    if not hasattr(model, "text_model"):
        return model(x)
    outputs = model.vision_model(x)
    if hasattr(model, "visual_projection"):
        outputs["image_embeds"] = model.visual_projection(outputs.pooler_output)
    return outputs


VISION = "onnx/vision_model.onnx"
OTHER = "onnx/model.onnx"
STATES = ["last_hidden_state", "pooler_output"]
CLASSIFIER = of("ViTForImageClassification", id2label=LABELS)
UNNAMED = of("ViTForImageClassification", num_labels=3)
PROJECTED = of("CLIPVisionModelWithProjection", projection_dim=CLASSES)
# {name: (model, the graph's file, names of its outputs)}
TOWERS = {
    "CLIP": (lambda: transformers.CLIPModel(clip()), VISION, ["image_embeds"]),
    "SigLIP": (SIGLIP, VISION, STATES),
    "CLIP with a projection": (PROJECTED, VISION, ["image_embeds"]),
    "CLIP without one": (of("CLIPVisionModel"), OTHER, STATES),
    "DINOv2": (of("Dinov2Model"), OTHER, STATES),
    "DINOv3": (of("DINOv3ViTModel"), OTHER, STATES),
    "a classifier": (CLASSIFIER, OTHER, ["logits"]),
    "without names": (UNNAMED, OTHER, ["logits"]),
}


@pytest.mark.parametrize("name", TOWERS)
def test_a_graph_has_transformers_outputs(tmp_path, name):
    make, file, names = TOWERS[name]
    model = originals.randomize(make())
    model.save_pretrained(tmp_path / "model")
    PROCESSOR.save_pretrained(tmp_path / "model")
    vit = imagepiece_jax.load(tmp_path / "model")
    out = export(vit, tmp_path / "out", layout="transformers")
    assert out == tmp_path / "out" / file
    texts = ((tmp_path / at / "config.json").read_text() for at in ("model", "out"))
    configs = [json.loads(text) for text in texts]
    for config in configs:  # a classifier's fields come from the model
        config.pop("label2id", None)
        config.pop("problem_type", None)
    assert configs[0] == configs[1]
    session = onnxruntime.InferenceSession(out)
    images = originals.images().transpose(0, 3, 1, 2)
    ours = session.run(names, {"pixel_values": images})
    assert len(session.get_outputs()) == len(names)
    with torch.no_grad():
        theirs = named_outputs(model, torch.from_numpy(images))
    for output, array in zip(names, ours, strict=True):
        np.testing.assert_allclose(array, theirs[output].numpy(), rtol=0, atol=1e-5)
