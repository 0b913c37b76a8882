"""Where weights are: folders, runs, and the hub's cache."""

import json
import os
import types

import pytest
import safetensors.numpy

import imagepiece_jax
from imagepiece_jax.models import timm_tensors
from imagepiece_jax.weights import location
from tests.helpers import tiny_vit
from tests.helpers.refused_calls import refused
from tests.weights.test_load import HF, MODEL, STD, TIMM, same


def test_a_folder_without_a_config_has_one_weights_file(tmp_path):
    (tmp_path / "recovered.safetensors").touch()
    with refused(tmp_path, "no model.safetensors"):
        location.locate_weights(tmp_path)
    (tmp_path / "b.pth").touch()
    assert location.locate_weights(tmp_path).find_weights() == tmp_path / "b.pth"
    (tmp_path / "a.npz").touch()
    with refused(f"folder {tmp_path} has a.npz, b.pth, not one"):
        location.locate_weights(tmp_path)


def test_open_clips_files_count_without_other_weights(tmp_path):
    open_clip_file = tmp_path / "open_clip_config.json"
    open_clip_file.write_text("{}")
    (tmp_path / "open_clip_model.safetensors").touch()
    assert location.locate_weights(tmp_path).config_file == open_clip_file
    (tmp_path / "config.json").write_text("{}")
    assert location.locate_weights(tmp_path).config_file == open_clip_file
    (tmp_path / "model.safetensors").touch()
    assert location.locate_weights(tmp_path).config_file == tmp_path / "config.json"


@pytest.mark.parametrize("path", ["hf://org/name/file", "hf:/o/n", "w.pth"])
def test_neither_an_id_nor_a_path_is_refused(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with refused(path):
        imagepiece_jax.load(path)


# The hub

COMMIT = "a" * 40
OLDER = "b" * 40


@pytest.fixture(scope="module")
def variables():
    return tiny_vit.variables(MODEL)


@pytest.fixture(scope="module")
def files(variables):
    weights = safetensors.numpy.save(timm_tensors.to_timm(variables))
    config = json.dumps(TIMM).encode()
    return {"config.json": config, "model.safetensors": weights, "README.md": b"#"}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache without a network."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    location.fetch_folder.cache_clear()
    yield tmp_path / "hub"
    location.fetch_folder.cache_clear()


def lay_out(cache, files, commit=COMMIT, ref="main"):
    """Fill the cache of org/name like huggingface_hub; return the files' folder."""
    folder = cache / "models--org--name"
    snapshot = folder / "snapshots" / commit
    for part in (snapshot, folder / "refs"):
        part.mkdir(parents=True, exist_ok=True)
    (folder / "refs" / ref).write_text(commit)
    for file, content in files.items():
        (snapshot / file).write_bytes(content)
    return snapshot


def test_a_cached_id_loads_without_a_network(cache, files, variables):
    lay_out(cache, files)
    vit = imagepiece_jax.load("hf://org/name")
    assert vit.origin.title == "folder hf://org/name"  # not the cache's folder
    assert same(vit.variables, variables)
    assert (vit.config.num_classes, vit.config.std) == (7, STD)
    assert imagepiece_jax.read_config("hf://org/name") == vit.config


def test_a_revision_is_another_commit(cache, files):
    main = lay_out(cache, files)
    older = lay_out(cache, files, OLDER, ref="v1")
    for revision, snapshot in (("", main), ("@v1", older), (f"@{OLDER}", older)):
        assert location.fetch_folder(f"hf://org/name{revision}") == snapshot
    with refused("@v2: "):
        location.fetch_folder("hf://org/name@v2")


def test_an_incomplete_cache_gives_no_default_normalization(cache, files):
    """Another program may have cached no preprocessor_config.json."""
    lay_out(cache, files | {"config.json": json.dumps(HF).encode()})
    with refused("has no preprocessor_config.json", "or give config="):
        imagepiece_jax.load("hf://org/name")


@pytest.fixture
def online(cache, files, monkeypatch):
    """The files of org/name on a hub that fetches the named ones."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    hub_files = dict(files)

    def snapshot_download(_, revision, allow_patterns):
        assert revision in (None, COMMIT)
        named = {k: v for k, v in hub_files.items() if k in allow_patterns}
        return str(lay_out(cache, named))

    def list_files(_, revision):
        return [types.SimpleNamespace(path=path) for path in hub_files]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "get_cached_repo_tree", list_files)
    return hub_files


def test_only_needed_files_are_fetched(online, variables):
    online["pytorch_model.bin"] = b"not this one"
    vit = imagepiece_jax.load("hf://org/name")
    assert same(vit.variables, variables)
    assert {*os.listdir(vit.origin.path)} == {"config.json", "model.safetensors"}


def test_an_index_names_the_fetched_parts(online):
    part = online.pop("model.safetensors")
    online |= dict.fromkeys(["a.safetensors", "b.safetensors", "c.safetensors"], part)
    weight_map = {"x": "a.safetensors", "y": "b.safetensors"}
    index = json.dumps({"weight_map": weight_map}).encode()
    online["model.safetensors.index.json"] = index
    fetched = {"config.json", "model.safetensors.index.json"} | {*weight_map.values()}
    assert {*os.listdir(location.fetch_folder("hf://org/name"))} == fetched


def test_missing_weights_are_named(online):
    del online["model.safetensors"]
    with refused("hf://org/name has none of model.safetensors, "):
        imagepiece_jax.load("hf://org/name")
