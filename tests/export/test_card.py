"""The card: its figures by other code, its images, and whose README.md it replaces."""

import io
import json
import re

import numpy as np
import pytest
from PIL import Image

import imagepiece_jax
from imagepiece_jax.commands import export
from imagepiece_jax.models.problem_type import MULTI_LABEL, REGRESSION
from tests.command import call
from tests.export import photographs
from tests.export.test_tower import clip
from tests.models import tiny
from tests.refused import refused

onnxruntime = pytest.importorskip("onnxruntime")


def by_hand(file, facts, pixels):
    """First output of a file for pixels, prepared as its JSON says."""
    normal = facts["normalization"]
    images = ((pixels / 255 - normal["mean"]) / normal["std"]).astype(np.float32)
    if facts["input"]["shape"][1] == 3:
        images = images.transpose(0, 3, 1, 2)
    session = onnxruntime.InferenceSession(file)
    names = [output.name for output in session.get_outputs()]
    return session.run([names[-1]], {facts["input"]["name"]: images})[0]


def kept_by_hand(own, base):
    """% of the ten nearest images that stay."""
    shares = []
    sets = []
    for rows in (own, base):
        rows = rows.astype(np.float64)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        sets.append([{*np.argsort(-(rows @ row))[:11]} for row in rows])
    for number, (ours, theirs) in enumerate(zip(*sets, strict=True)):
        shares.append(len((ours & theirs) - {number}) / 10)
    return 100 * np.mean(shares)


@pytest.mark.parametrize("classes", [tiny.CLASSES, 0])
def test_figures_are_those_of_the_files(tmp_path, classes):
    vit = tiny.pretrained("tome:r=3", depth=2, num_classes=classes)
    saved = imagepiece_jax.save(vit, tmp_path / "w")
    folder = photographs.write(tmp_path / "photos", 60)
    words = [saved, tmp_path / "half", "--dtype=float16", "--images", folder]
    if not classes:
        words += ["--layout", "transformers"]
    ended = call(export.main, *words).ok()
    file = tmp_path / "half" / "model_fp16.onnx"
    if not classes:
        file = tmp_path / "half" / "onnx" / "model_fp16.onnx"
    facts = json.loads(file.with_name(f"{file.name}.json").read_text())
    card = facts["card"]
    pixels = np.stack([np.asarray(Image.open(folder / n)) for n in card["images"]])
    assert len(pixels) >= 16
    assert f"a card of 60 images: {len(pixels)} of them are compared" in ended.err
    dense = imagepiece_jax.export(vit.with_reduction(None), tmp_path / "dense.onnx")
    dense_facts = json.loads((tmp_path / "dense.onnx.json").read_text())
    base = by_hand(dense, dense_facts, pixels)
    jpeg = []
    for image in pixels:
        stored = io.BytesIO()
        Image.fromarray(image).save(stored, "jpeg", quality=75)
        jpeg.append(np.asarray(Image.open(stored)))
    outputs = {
        "file": by_hand(file, facts, pixels),
        "JPEG 75": by_hand(dense, dense_facts, np.stack(jpeg)),
        "mirrored": by_hand(dense, dense_facts, np.flip(pixels, 2)),
    }
    for name, own in outputs.items():
        figures = card["fidelity"][name]
        kept = kept_by_hand(own, base)
        assert figures["neighbors_kept"][0] == pytest.approx(kept, abs=2)
        if classes:
            same = 100 * np.mean(own.argmax(1) == base.argmax(1))
            assert figures["first_class"][0] == pytest.approx(same)
        else:
            lengths = np.linalg.norm(own, axis=1) * np.linalg.norm(base, axis=1)
            cosines = np.sum(own * base, axis=1) / lengths
            assert figures["cosine_mean"] == pytest.approx(cosines.mean(), abs=1e-4)
            assert figures["cosine_worst"] == pytest.approx(cosines.min(), abs=1e-3)
    gmacs = facts["gmacs"] / dense_facts["gmacs"]
    assert card["mac_share"] == pytest.approx(gmacs)
    assert card["megabytes"]["file"] == file.stat().st_size / 1e6
    median, low, high = card["speedup"]
    assert 0 < low <= median <= high
    page = (tmp_path / "half" / "README.md").read_text()
    rows = re.findall(r"^\| .*$", page, re.MULTILINE)
    assert len(rows) == 6  # head, line, dense, file, and two controls
    assert all(row in ended.out for row in rows)
    assert page.startswith("---\npipeline_tag: image-")


def test_the_card_of_another_file_or_person_is_no_card_of_this_one(tmp_path):
    vit = tiny.pretrained("tome:r=3", depth=1)
    pixels = photographs.pixels_of(30)
    out = tmp_path / "m.onnx"
    page = tmp_path / "README.md"
    page.write_text("mine")
    with refused("README.md"):
        imagepiece_jax.export(vit, out, images=pixels)
    assert {*tmp_path.iterdir()} == {page}
    imagepiece_jax.export(vit, out)
    assert page.read_text() == "mine"
    page.unlink()
    imagepiece_jax.export(vit, out, images=pixels)
    imagepiece_jax.export(vit, tmp_path / "other.onnx")
    assert "tome" in page.read_text()
    imagepiece_jax.export(vit, out)  # another file from now on
    assert not page.exists()


def test_images_must_leave_some_to_compare(tmp_path):
    vit = tiny.pretrained("tome:r=3", depth=1)
    out = tmp_path / "m.onnx"
    copies = np.repeat(photographs.pixels_of(2), 20, axis=0)
    for images, word in ((photographs.pixels_of(9), "9"), (copies, "alike")):
        with refused("images", word):
            imagepiece_jax.export(vit, out, dtype="int8", images=images)
    with refused("int8", "--images"):
        imagepiece_jax.export(vit, out, dtype="int8")
    with refused("dtype", "bfloat16"):
        imagepiece_jax.export(vit, out, dtype="bfloat16")
    folder = photographs.write(tmp_path / "photos", 30)
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes()[:40])
    with refused("images"):
        imagepiece_jax.export(vit, out, dtype="int8", images=folder)
    assert {*tmp_path.iterdir()} == {folder}


@pytest.mark.parametrize("problem_type, classes", [(REGRESSION, 3), (MULTI_LABEL, 1)])
def test_numbers_have_no_first_class(tmp_path, problem_type, classes):
    """The first of one class is the same in every file."""
    vit = tiny.pretrained("tome:r=3", depth=1, num_classes=classes)
    vit = tiny.of_problem(vit, problem_type)
    out = imagepiece_jax.export(vit, tmp_path, images=photographs.pixels_of(30))
    fidelity = json.loads(out.with_name("model.onnx.json").read_text())["card"][
        "fidelity"
    ]
    assert fidelity["file"].keys() == {"cosine_mean", "cosine_worst", "neighbors_kept"}


def test_the_vector_of_a_projection_is_no_class(tmp_path):
    out = imagepiece_jax.export(clip(), tmp_path, images=photographs.pixels_of(30))
    facts = json.loads(out.with_name("model.onnx.json").read_text())
    assert facts["activation"] is None
    assert "cosine_mean" in facts["card"]["fidelity"]["file"]
    assert "image-feature-extraction" in (tmp_path / "README.md").read_text()


def test_tokens_that_no_head_pools_are_no_vectors(tmp_path):
    """A reduced model has fewer of them."""
    vit = tiny.pretrained("tome:r=3", depth=1, num_classes=0, pool="none")
    pixels = photographs.pixels_of(30)
    for output in ("logits", "features"):
        with refused("pool", "--output patches"):
            imagepiece_jax.export(vit, tmp_path, images=pixels, output=output)
    assert not [*tmp_path.iterdir()]
    imagepiece_jax.export(vit, tmp_path, images=pixels, output="patches")
    assert (tmp_path / "README.md").exists()


def test_a_folder_named_as_the_card_is_left_alone(tmp_path):
    (tmp_path / "README.md").mkdir()
    imagepiece_jax.export(tiny.pretrained(depth=1), tmp_path / "m.onnx")
    assert (tmp_path / "README.md").is_dir()
    assert (tmp_path / "m.onnx.json").exists()


def test_damaged_images_are_left_out(tmp_path):
    vit = tiny.pretrained("tome:r=3", depth=1)
    folder = photographs.write(tmp_path / "photos", 40)
    damaged = sorted(folder.iterdir())[::3]
    for file in damaged:
        file.write_bytes(b"no image")
    out = imagepiece_jax.export(vit, tmp_path / "m.onnx", dtype="int8", images=folder)
    card = json.loads(out.with_name("m.onnx.json").read_text())["card"]
    assert len(card["images"]) >= 16
    assert not {*card["images"]} & {file.name for file in damaged}
