"""Accuracy among the classes of the images, against timm's model and its rule.

timm's validate.py --valid-labels takes these columns of the logits and counts the
labels among them.
"""

import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform
from timm.utils import accuracy

import imagepiece_jax
from imagepiece_jax.common import parallel
from imagepiece_jax.evaluate.accuracy import evaluate, model_step
from imagepiece_jax.evaluate.labeled_images import labeled_images

LABELS = {  # ImageNet's, by WordNet ID
    "n01440764": 0,
    "n02102040": 217,
    "n02979186": 482,
    "n03000684": 491,
    "n03028079": 497,
    "n03394916": 566,
    "n03417042": 569,
    "n03425413": 571,
    "n03445777": 574,
    "n03888257": 701,
}
A_CLASS = 6  # photographs


@pytest.mark.slow
def test_deit_ti_on_photographs_of_ten_classes(assets, tmp_path):
    file = assets / "weights" / "deit_tiny_patch16_224.pth"
    model = timm.create_model("deit_tiny_patch16_224").eval()
    state = torch.load(file, map_location="cpu", weights_only=True)
    model.load_state_dict(state.get("model", state))
    crop = model.pretrained_cfg["crop_pct"]  # which a name without a tag has here, too
    transform = create_transform((3, 224, 224), crop_pct=crop, interpolation="bicubic")
    images = []
    targets = []
    for name, label in LABELS.items():
        folder = tmp_path / "set" / "val" / name
        folder.mkdir(parents=True)
        photographs = sorted((assets / "data/imagenette_mini/val" / name).iterdir())
        for photograph in photographs[:A_CLASS]:
            (folder / photograph.name).symlink_to(photograph)
            images.append(transform(Image.open(photograph).convert("RGB")))
            targets.append(label)
    with torch.no_grad():
        logits = model(torch.stack(images))
    valid = sorted(LABELS.values())
    places = torch.tensor([valid.index(label) for label in targets])
    vit = imagepiece_jax.load(file, dtype="float32")
    images = labeled_images(vit, f"folder:{tmp_path}/set")
    variables = parallel.replicate(vit.variables)
    among_all = accuracy(logits, torch.tensor(targets), (1, 5))
    among_ten = accuracy(logits[:, valid], places, (1, 5))
    for classes, figures in ((None, among_all), (valid, among_ten)):
        step = model_step(vit.model, classes=classes)
        result = evaluate(step, variables, images.batches())
        got = result.acc1, result.acc5
        assert got == pytest.approx([float(each) for each in figures], abs=1e-4)
    assert among_all[0] < among_ten[0]
