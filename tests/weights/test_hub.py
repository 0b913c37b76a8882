import hashlib
import http.server
import json
import threading
from unittest import mock

import pytest
import safetensors.numpy

import imagepiece_jax
from imagepiece_jax.models import timm_tensors
from imagepiece_jax.weights import hub
from tests.helpers import tiny_vit
from tests.helpers.refused_calls import refused
from tests.weights.test_load_published import HF, STD, TIMM, same

COMMIT = "a" * 40
OLDER = "b" * 40


@pytest.fixture(scope="module")
def variables():
    return tiny_vit.variables(tiny_vit.model(depth=1))


@pytest.fixture(scope="module")
def files(variables):
    weights = safetensors.numpy.save(timm_tensors.to_timm(variables))
    config = json.dumps(TIMM).encode()
    return {"config.json": config, "model.safetensors": weights, "README.md": b"#"}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache without a network."""
    constants = pytest.importorskip("huggingface_hub.constants")
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.fetch_folder.cache_clear()
    yield folder
    hub.fetch_folder.cache_clear()


def lay_out(cache, files, commit=COMMIT, ref="main", name="org/name"):
    folder = cache / f"models--{name.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    for part in (snapshot, folder / "blobs", folder / "refs"):
        part.mkdir(parents=True, exist_ok=True)
    if ref:
        (folder / "refs" / ref).write_text(commit)
    for file, content in files.items():
        blob = hashlib.sha256(content).hexdigest()
        (folder / "blobs" / blob).write_bytes(content)
        (snapshot / file).symlink_to(f"../../blobs/{blob}")
    return snapshot


def test_a_cached_id_loads_without_a_network(cache, files, variables):
    snapshot = lay_out(cache, files)
    vit = imagepiece_jax.load("hf://org/name")
    assert vit.origin.title == "folder hf://org/name"  # not the cache's folder
    model, values = tiny_vit.pair(vit)
    assert same(values, variables)
    assert (model.config.num_classes, model.config.std) == (7, STD)
    assert hub.fetch_folder("hf://org/name") == snapshot
    assert imagepiece_jax.read_config("hf://org/name") == model.config
    assert not hub.is_hub_id("org/name")


def test_a_revision_is_another_commit(cache, files, variables):
    lay_out(cache, files)
    other = timm_tensors.to_timm(tiny_vit.variables(tiny_vit.model(depth=1), seed=1))
    older = {**files, "model.safetensors": safetensors.numpy.save(other)}
    snapshot = lay_out(cache, older, OLDER, ref="v1")
    for revision in ("v1", OLDER):
        assert hub.fetch_folder(f"hf://org/name@{revision}") == snapshot
        values = imagepiece_jax.load(f"hf://org/name@{revision}").variables
        assert not same(values, variables)
    with refused("@v2: "):
        hub.fetch_folder("hf://org/name@v2")


def test_a_cache_must_know_whether_the_hub_has_a_file(cache, online, files):
    """Another program's cache does not; ours lists the repository's files."""
    constants = pytest.importorskip("huggingface_hub.constants")
    file = "preprocessor_config.json"
    files = {**files, "config.json": json.dumps(HF).encode()}
    snapshot = lay_out(cache, files)
    with mock.patch.object(constants, "HF_HUB_OFFLINE", True):
        with refused(f"does not say whether {file}", f"load the folder {snapshot}"):
            hub.fetch_folder("hf://org/name")
    assert hub.fetch_folder("hf://org/name") == snapshot
    hub.fetch_folder.cache_clear()
    with mock.patch.object(constants, "HF_HUB_OFFLINE", True):
        assert hub.fetch_folder("hf://org/name") == snapshot


def describe_file(path, content):
    """A file as the hub's API lists it."""
    digest = hashlib.sha256(content).hexdigest()
    return {"type": "file", "path": path, "size": len(content), "oid": digest}


class Hub(http.server.BaseHTTPRequestHandler):
    """Serves `files` of org/name: its commit, the list of its files, and each file."""

    files = {}
    requests = []

    def do_GET(self):
        path = self.path.partition("?")[0]
        is_api = path.startswith("/api/models/")
        parts = path.removeprefix("/api/models").strip("/").split("/")
        owner, name, kind, revision, *file = [*parts, "revision", "main"][:5]
        self.requests.append((self.command, "".join(file) or kind, revision))
        content = self.files.get("".join(file), b"")
        if is_api:
            content = json.dumps({"id": "org/name", "sha": COMMIT}).encode()
            if kind == "tree":
                content = json.dumps([describe_file(*f) for f in self.files.items()])
                content = content.encode()
        headers = {"X-Repo-Commit": COMMIT, "Content-Length": len(content)}
        headers["ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
        if (owner, name) != ("org", "name"):
            headers["X-Error-Code"] = "RepoNotFound"
        elif revision not in ("main", COMMIT):
            headers["X-Error-Code"] = "RevisionNotFound"
        elif not content:
            headers["X-Error-Code"] = "EntryNotFound"
        self.send_response(404 if "X-Error-Code" in headers else 200)
        for header, value in headers.items():
            self.send_header(header, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def online(cache, files, monkeypatch):
    """A handler class with the hub's `files` and its `requests`."""
    constants = pytest.importorskip("huggingface_hub.constants")
    handler = type("Own", (Hub,), {"files": dict(files), "requests": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    with server:
        yield handler
        server.shutdown()


def cached_files(cache):
    return {path.name for path in cache.glob("models--*/snapshots/*/*")}


def test_only_needed_files_are_fetched(online, cache, variables):
    online.files["pytorch_model.bin"] = b"not this one"
    assert same(imagepiece_jax.load("hf://org/name").variables, variables)
    assert cached_files(cache) == {"config.json", "model.safetensors"}
    count = len(online.requests)
    imagepiece_jax.load("hf://org/name")
    assert len(online.requests) == count


def test_an_index_names_the_fetched_parts(online, cache):
    content = online.files.pop("model.safetensors")
    parts = {"a.safetensors": content, "b.safetensors": content, "c.safetensors": b"c"}
    weight_map = {"x": "a.safetensors", "y": "b.safetensors"}
    index = json.dumps({"weight_map": weight_map}).encode()
    online.files |= parts | {"model.safetensors.index.json": index}
    hub.fetch_folder("hf://org/name")
    fetched = {"config.json", "model.safetensors.index.json"} | {*weight_map.values()}
    assert cached_files(cache) == fetched


def test_missing_weights_or_repositories_are_named(online):
    del online.files["model.safetensors"]
    with refused("hf://org/name has none of model.safetensors, "):
        imagepiece_jax.load("hf://org/name")
    for name in ("org/other", "org/name@v9"):  # in the words of huggingface_hub
        with pytest.raises(OSError, match="404 Client Error"):
            imagepiece_jax.load(f"hf://{name}")
