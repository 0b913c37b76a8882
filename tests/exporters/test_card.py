import dataclasses
import errno
import json
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

import imagepiece_jax
from imagepiece_jax.commands.export import main
from imagepiece_jax.data.pictures import as_source
from imagepiece_jax.errors import RunError
from imagepiece_jax.exporters import card
from imagepiece_jax.exporters.export import export
from imagepiece_jax.inference.compare_outputs import IMAGE_CONTROLS, measure_fidelity
from imagepiece_jax.models.recovery_record import Recovery
from imagepiece_jax.recovery.recovery_images import split_images
from tests.exporters.test_tower import read_files
from tests.helpers import made_up_recoveries, small_photographs, tiny_vit
from tests.helpers.refused_calls import refused
from tests.helpers.run_command import call

onnxruntime = pytest.importorskip("onnxruntime")


def run_by_hand(file, facts, pixels):
    """A file's last output for pixels, prepared by its JSON."""
    normal = facts["normalization"]
    images = ((pixels / 255 - normal["mean"]) / normal["std"]).astype(np.float32)
    if facts["input"]["shape"][1] == 3:
        images = images.transpose(0, 3, 1, 2)
    session = onnxruntime.InferenceSession(file)
    names = [output.name for output in session.get_outputs()]
    return session.run([names[-1]], {facts["input"]["name"]: images})[0]


def with_origin(vit, **fields):
    return dataclasses.replace(vit, origin=dataclasses.replace(vit.origin, **fields))


@pytest.mark.parametrize("has_classes", [True, False])
def test_a_cards_metrics_equal_those_of_the_files(tmp_path, has_classes):
    vit = tiny_vit.pretrained("tome:r=3", depth=2)
    if not has_classes:
        vit = tiny_vit.with_problem_type(vit, "projection")
    saved = imagepiece_jax.save(vit, tmp_path / "w")
    folder = small_photographs.write_photographs(tmp_path / "photos", 60)
    words = [saved, tmp_path / "half", "--dtype=float16", "--images", folder]
    file = tmp_path / "half" / "model_fp16.onnx"
    if not has_classes:
        words += ["--layout", "transformers"]
        file = tmp_path / "half" / "onnx" / "vision_model_fp16.onnx"
    ended = call(main, *words).ok()
    facts = json.loads(file.with_name(f"{file.name}.json").read_text())
    measured = facts["card"]
    pixels = np.stack([np.asarray(Image.open(folder / n)) for n in measured["images"]])
    assert len(pixels) == 60  # nothing calibrates
    assert "a card of 60 compared images\n" in ended.err
    dense = export(vit.with_reduction(None), tmp_path / "dense.onnx")
    dense_facts = json.loads((tmp_path / "dense.onnx.json").read_text())
    base = run_by_hand(dense, dense_facts, pixels)
    outputs = {"file": run_by_hand(file, facts, pixels)}
    for name, change in IMAGE_CONTROLS.items():
        outputs[name] = run_by_hand(dense, dense_facts, change(pixels))
    for name, own in outputs.items():
        actual = measured["fidelity"][name]
        for figure, value in measure_fidelity(own, base, has_classes).items():
            atol = 2 if figure == "neighbors_kept" else 1e-3  # near ties
            np.testing.assert_allclose(actual[figure], value, rtol=1e-5, atol=atol)
    gmacs = facts["gmacs"] / dense_facts["gmacs"]
    assert measured["mac_share"] == pytest.approx(gmacs)
    assert measured["megabytes"]["file"] == file.stat().st_size / 1e6
    median, low, high = measured["speedup"]
    assert 0 < low <= median <= high
    page = (tmp_path / "half" / "README.md").read_text()
    rows = re.findall(r"^\| .*$", page, re.MULTILINE)
    assert len(rows) == 7  # head, line, dense, file, and three controls
    assert measured["fidelity"].keys() == {*outputs, "dense", "shuffled"}
    assert all(row in ended.out for row in rows)
    task = "image-classification" if has_classes else "image-feature-extraction"
    assert page.startswith(f"---\npipeline_tag: {task}\n")
    assert f"{file.name}, float16 (patch_embed float32)" in page


def test_a_foreign_readme_is_neither_replaced_nor_removed(tmp_path):
    vit = tiny_vit.pretrained("tome:r=3", depth=1)
    page = tmp_path / "README.md"
    page.write_text("mine")
    with refused("README.md"):
        export(vit, tmp_path / "m.onnx", images=small_photographs.draw(30))
    assert {*tmp_path.iterdir()} == {page}
    export(vit, tmp_path / "m.onnx")
    assert page.read_text() == "mine"


def test_images_must_leave_some_to_compare(tmp_path):
    vit = tiny_vit.pretrained("tome:r=3", depth=1)
    copies = np.repeat(small_photographs.draw(2), 20, axis=0)
    with refused("images", "2"):
        export(vit, tmp_path / "m.onnx", dtype="int8", images=copies)
    with refused("int8", "--images"):
        export(vit, tmp_path / "m.onnx", dtype="int8")
    assert not [*tmp_path.iterdir()]


def test_a_page_has_a_section_for_every_file(tmp_path):
    yaml = pytest.importorskip("yaml")
    license = 'CC BY: see #4, "é"\n[no]'
    vit = with_origin(tiny_vit.pretrained("tome:r=3", depth=1), license=license)
    pixels = small_photographs.draw(30)
    page = tmp_path / "README.md"

    def section_types():
        return re.findall(r"^# .*, (float\w+)$", page.read_text(), re.MULTILINE)

    export(vit, tmp_path / "a.onnx", images=pixels)
    export(vit, tmp_path / "b.onnx", images=pixels, dtype="float16")
    export(vit, tmp_path / "a.onnx", images=pixels)
    assert section_types() == ["float32", "float16"]
    _, header, _ = page.read_text().split("---\n")
    assert yaml.safe_load(header)["license"] == license
    assert "too few" in page.read_text() and "nearest" not in page.read_text()
    for other in ({"name": "o"}, {"license": "mit"}):
        with refused("README.md", "another folder"):
            export(with_origin(vit, **other), tmp_path / "c.onnx", images=pixels)
    export(vit, tmp_path / "c.onnx")  # without a card
    export(vit, tmp_path / "b.onnx")
    assert section_types() == ["float32"]
    export(vit, tmp_path / "a.onnx")
    assert not page.exists()


def test_a_failed_export_leaves_the_folder_as_it_was(tmp_path, monkeypatch):
    """Of a layout, whose program needs all files, on a full disk."""
    vit = tiny_vit.pretrained("tome:r=3", depth=1)
    pixels = small_photographs.draw(30)
    options = {"layout": "transformers", "images": pixels}
    export(vit, tmp_path / "out", **options)
    before = read_files(tmp_path)
    assert len(before) == 5  # graph, JSON, page and the layout's two

    def fail(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(card, "write_card_page", fail)
    with pytest.raises(RunError, match=r"model\.onnx cannot be written \(No space"):
        export(vit.with_reduction(None), tmp_path / "out", **options)
    assert read_files(tmp_path) == before


def test_images_that_recovered_the_model_are_not_compared(tmp_path):
    """New files in the folder shift the evenly spaced choice."""
    folder = small_photographs.write_photographs(tmp_path / "photos", 60)
    vit = made_up_recoveries.recovered(tiny_vit.pretrained("tome:r=3", depth=1))
    learned = split_images(as_source(folder), 16)
    (variant,) = vit.recovery.variants
    variant = dataclasses.replace(variant, depth=1, learned=learned.digests)
    vit = dataclasses.replace(vit, recovery=Recovery((variant,)))
    names = {pathlib.Path(learned.training.image_name(i)).name for i in range(44)}
    small_photographs.write_photographs(tmp_path / "more", 7, seed=1)
    for file in (tmp_path / "more").iterdir():
        file.rename(folder / f"0{file.name}")
    vit = imagepiece_jax.load(imagepiece_jax.save(vit, tmp_path / "w"))
    assert vit.recovered_variant
    images = card.read_card_images(vit, folder, False)
    assert len(images.compared_pixels) >= 16
    assert not names & {*images.compared_names}
    with refused("have not trained the model"):
        card.read_card_images(vit, [folder / name for name in names], False)


def test_unpooled_tokens_need_output_patches(tmp_path):
    """A reduced model has fewer tokens."""
    vit = tiny_vit.pretrained("tome:r=3", depth=1, num_classes=0, pool="none")
    pixels = small_photographs.draw(30)
    with refused("pool", "--output patches"):
        export(vit, tmp_path, images=pixels)
    assert not [*tmp_path.iterdir()]
    export(vit, tmp_path, images=pixels, output="patches")
    assert (tmp_path / "README.md").exists()
