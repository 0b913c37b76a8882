import json

import pytest

import imagepiece_jax
from imagepiece_jax.weights.location import (
    FOLDER_KIND,
    RUN_KIND,
    locate_weights,
)
from tests.helpers.refused_calls import refused

TIMM = {"architecture": "vit_tiny_patch16_224"}
RUN_FIELDS = {"image_size": 16, "num_classes": 2, "model": {}, "reduction": "none"}


def write_json(folder, name, content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("config, kind", [(TIMM, FOLDER_KIND), (RUN_FIELDS, RUN_KIND)])
def test_a_folders_kind_follows_from_its_config(tmp_path, config, kind):
    folder = write_json(tmp_path / "a", "config.json", config)
    located = locate_weights(folder)
    checkpoint = "best" if kind == RUN_KIND else None
    file = folder / "config.json"
    origin = located.origin
    assert (origin.path, origin.kind, origin.name) == (folder, kind, "a")
    assert (origin.checkpoint, located.title) == (checkpoint, f"{kind} {folder}")
    assert (located.config_file, located.config_fields) == (file, config)


def test_a_folder_without_a_config_has_one_weights_file(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "recovered.safetensors").touch()
    with refused(tmp_path, "no model.safetensors"):
        locate_weights(tmp_path)
    (tmp_path / "b.pth").touch()
    assert locate_weights(tmp_path).config_file is None
    (tmp_path / "a.npz").touch()
    with refused(f"folder {tmp_path} has a.npz, b.pth, not one"):
        locate_weights(tmp_path)


def test_open_clips_files_count_without_other_weights(tmp_path):
    folder = write_json(tmp_path, "open_clip_config.json", {"model_cfg": {}})
    (folder / "open_clip_model.safetensors").touch()
    assert locate_weights(folder).config_file.name == "open_clip_config.json"
    write_json(folder, "config.json", {"architectures": ["CLIPModel"]})
    assert locate_weights(folder).config_file.name == "open_clip_config.json"
    (folder / "model.safetensors").touch()
    located = locate_weights(folder)
    assert located.config_file.name == "config.json"


@pytest.mark.parametrize("path", ["hf://org/name/file", "hf:/o/n", "w.pth"])
def test_neither_an_id_nor_a_path_is_refused(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with refused(path):
        imagepiece_jax.load(path)
