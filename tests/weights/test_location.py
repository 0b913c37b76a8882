"""What a path holds: kinds of places, their names, and refusals."""

import json
import pathlib

import pytest

import imagepiece_jax
from imagepiece_jax.weights.location import (
    FOLDER_KIND,
    RUN_KIND,
    Location,
    locate_config,
    locate_weights,
)
from tests.helpers.refused_calls import refused

TIMM = {"architecture": "vit_tiny_patch16_224"}
OF_RUN = {"image_size": 16, "num_classes": 2, "model": {}, "reduction": "none"}


def write(folder, name, content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("config, kind", [(TIMM, FOLDER_KIND), (OF_RUN, RUN_KIND)])
def test_a_folder_is_what_its_config_says(tmp_path, config, kind):
    folder = write(tmp_path / "a", "config.json", config)
    found = locate_weights(folder)
    checkpoint = "best" if kind == RUN_KIND else None
    file = folder / "config.json"
    assert found == Location(folder, kind, file, config, checkpoint=checkpoint)
    assert (found.origin.name, found.title) == ("a", f"{kind} {folder}")


def test_a_folder_without_a_config_has_one_weights_file(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "recovered.safetensors").touch()
    must = f"folder {tmp_path} must have one weights file, such as model.safetensors"
    with refused(f"{must}; it has none"):
        locate_weights(tmp_path)
    (tmp_path / "b.pth").touch()
    assert locate_weights(tmp_path) == Location(tmp_path, FOLDER_KIND)
    (tmp_path / "a.npz").touch()
    with refused(f"{must}; it has a.npz, b.pth"):
        locate_weights(tmp_path)


def test_open_clip_counts_where_no_other_weights_are(tmp_path):
    folder = write(tmp_path, "open_clip_config.json", {"model_cfg": {}})
    (folder / "open_clip_model.safetensors").touch()
    assert locate_weights(folder).config_file.name == "open_clip_config.json"
    write(folder, "config.json", {"architectures": ["CLIPModel"]})
    assert locate_weights(folder).config_file.name == "open_clip_config.json"
    (folder / "model.safetensors").touch()
    found = locate_weights(folder)
    assert (found.kind, found.config_file.name) == (FOLDER_KIND, "config.json")


def test_a_folder_of_the_hubs_cache_has_the_name_of_its_repository(tmp_path):
    folder = tmp_path / "models--org--name" / "snapshots" / "0a1b"
    found = locate_weights(write(folder, "config.json", TIMM))
    assert (found.origin.name, found.title) == ("org/name", "folder hf://org/name")


def test_nothing_is_no_run(tmp_path, monkeypatch):
    write(tmp_path / "a", "config.json", OF_RUN)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate_config(str(tmp_path / "x")) is None
    assert locate_config("x" * 5000) is None  # longer than names may be
    for path in ("~/a", "~/a/config.json"):
        assert locate_config(path).kind == RUN_KIND


IDS = ["hf://name", "hf://org/name/file", "hf://org/name@", pathlib.Path("hf://o/n")]


@pytest.mark.parametrize("path", [*IDS, "w.pth"])
def test_what_is_neither_an_id_nor_a_path(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with refused("no such file or folder" if path == "w.pth" else "hf://OWNER/NAME"):
        imagepiece_jax.load(path)
