"""Accuracy among the classes of the images, against timm's model and its rule.

timm's validate.py --valid-labels takes these columns of the logits and counts the
labels among them.
"""

import json

import pytest
from PIL import Image

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

from timm.data import create_transform  # noqa: E402
from timm.utils import accuracy  # noqa: E402

from imagepiece_jax.commands import evaluate  # noqa: E402
from tests.command import call  # noqa: E402

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
    wanted = {
        "": accuracy(logits, torch.tensor(targets), (1, 5)),
        "--valid_labels=data": accuracy(logits[:, valid], places, (1, 5)),
    }
    words = ["--weights", file, "--data", f"folder:{tmp_path}/set", "--json"]
    words += [tmp_path / "result.json", "--dtype=float32"]
    for flag, figures in wanted.items():
        call(evaluate.main, *words, *filter(None, [flag])).ok()
        result = json.loads((tmp_path / "result.json").read_text())
        got = result["acc1"], result["acc5"]
        assert got == pytest.approx([float(each) for each in figures], abs=1e-4)
    assert wanted[""][0] < wanted["--valid_labels=data"][0]
