"""Hub ids: from caches laid out by hand, and from a hub on this machine."""

import hashlib
import http.server
import importlib
import json
import sys
import threading

import pytest
import safetensors.numpy

import imagepiece_jax
from imagepiece_jax.errors import InputError
from imagepiece_jax.models import timm_tensors
from imagepiece_jax.weights import hub, load
from tests.models import tiny
from tests.weights import hub_stand_in
from tests.weights.test_load_published import HF, STD, TIMM, same

COMMIT = "a" * 40
OLDER = "b" * 40


@pytest.fixture(scope="module")
def variables():
    return tiny.variables(tiny.model(depth=1))


@pytest.fixture(scope="module")
def files(variables):
    """The files of a repository, as bytes by name."""
    weights = safetensors.numpy.save(timm_tensors.to_timm(variables))
    config = json.dumps(TIMM).encode()
    return {"config.json": config, "model.safetensors": weights, "README.md": b"#"}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache and no network, of a stand-in where huggingface_hub is absent."""
    folder = tmp_path / "hub"
    if importlib.util.find_spec("huggingface_hub") is None:
        for name, module in hub_stand_in.modules(folder).items():
            monkeypatch.setitem(sys.modules, name, module)
    else:
        constants = importlib.import_module("huggingface_hub.constants")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.repository_files.cache_clear()
    yield folder
    hub.repository_files.cache_clear()


def lay_out(cache, files, commit=COMMIT, ref="main", name="org/name"):
    """Files of a commit as huggingface_hub keeps them: blobs, refs and snapshots."""
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
    assert vit.source.title == "folder hf://org/name"  # not that of the cache
    found, values = tiny.pair(vit)
    assert same(values, variables)
    assert (found.config.num_classes, found.config.std) == (7, STD)
    assert hub.fetched("hf://org/name") == snapshot
    assert load.read_config("hf://org/name") == found.config
    assert not hub.is_id("org/name")


def test_a_revision_is_another_commit(cache, files, variables):
    lay_out(cache, files)
    other = timm_tensors.to_timm(tiny.variables(tiny.model(depth=1), seed=1))
    older = {**files, "model.safetensors": safetensors.numpy.save(other)}
    snapshot = lay_out(cache, older, OLDER, ref="v1")
    for revision in ("v1", OLDER):
        assert hub.fetched(f"hf://org/name@{revision}") == snapshot
        values = imagepiece_jax.load(f"hf://org/name@{revision}").variables
        assert not same(values, variables)
    with pytest.raises(InputError, match="@v2: the hub cannot be reached, and its cac"):
        hub.fetched("hf://org/name@v2")


def test_files_that_are_gone_are_fetched_again(cache, files):
    file = "model.safetensors"
    snapshot = lay_out(cache, files)
    assert hub.fetched("hf://org/name") == snapshot
    (snapshot / file).unlink()
    lacking = f"its cache has (no|none of) {file}"
    with pytest.raises(InputError, match=f"^hf://org/name: the hub .*{lacking}"):
        imagepiece_jax.load("hf://org/name")
    newer = lay_out(cache, files, OLDER)
    assert hub.fetched("hf://org/name") == newer != snapshot


def test_an_id_that_the_hub_does_not_take(cache):
    with pytest.raises(InputError, match="^hf://a--b/c: "):
        imagepiece_jax.load("hf://a--b/c")


def test_a_cache_that_does_not_say_whether_there_is_a_file(cache, files):
    """It marks what the hub was asked for and lacks."""
    file = "preprocessor_config.json"
    files = {**files, "config.json": json.dumps(HF).encode()}
    snapshot = lay_out(cache, files)
    with pytest.raises(InputError) as error:
        hub.fetched("hf://org/name")
    lacking = f"the cache does not say whether {file}"
    assert lacking in str(error.value)
    assert str(error.value).endswith(f"load the folder {snapshot}")
    mark = cache / "models--org--name" / ".no_exist" / COMMIT / file
    mark.parent.mkdir(parents=True)
    (mark.parent / "processor_config.json").touch()
    mark.touch()
    assert hub.fetched("hf://org/name") == snapshot


class Hub(http.server.BaseHTTPRequestHandler):
    """Serves `files` of org/name; a file in `cut` ends in the middle."""

    files = {}
    cut = ()
    requests = []

    def do_HEAD(self):
        self._answer(False)

    def do_GET(self):
        self._answer(True)

    def _answer(self, body):
        *_, owner, name, _, revision, file = self.path.split("/")
        self.requests.append((self.command, file, revision))
        content = self.files.get(file)
        problem = "EntryNotFound" if content is None else None
        if revision not in ("main", COMMIT):
            problem = "RevisionNotFound"
        if (owner, name) != ("org", "name"):
            problem = "RepoNotFound"
        self.send_response(404 if problem else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        if problem:
            self.send_header("X-Error-Code", problem)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            half = len(content) // 2 if file in self.cut else len(content)
            self.wfile.write(content[:half])

    def log_message(self, *_):
        pass


@pytest.fixture
def online(cache, files, monkeypatch):
    """A handler class whose `files` a hub serves, and its `requests`."""
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


def cached(cache):
    """Names of the files in the snapshots of a cache."""
    return {path.name for path in cache.glob("models--*/snapshots/*/*")}


def test_only_the_files_that_are_needed_are_fetched(online, cache, variables):
    online.files["pytorch_model.bin"] = b"not this one"
    assert same(imagepiece_jax.load("hf://org/name").variables, variables)
    assert cached(cache) == {"config.json", "model.safetensors"}
    got = [file for method, file, _ in online.requests if method == "GET"]
    assert got == ["config.json", "model.safetensors"]
    # The first file settles the commit, so that all are of one.
    others = [rev for _, file, rev in online.requests if file != "config.json"]
    assert {*others} == {COMMIT}
    count = len(online.requests)
    imagepiece_jax.load("hf://org/name")
    assert len(online.requests) == count


def test_transformers_models_come_with_their_processors(online, cache):
    """transformers 5 prefers the second file."""
    processors = {"preprocessor_config.json", "processor_config.json"}
    online.files["config.json"] = json.dumps(HF).encode()
    online.files |= dict.fromkeys(processors, b"{}")
    hub.fetched("hf://org/name")
    assert cached(cache) == processors | {"config.json", "model.safetensors"}


def test_what_the_hub_does_not_have(online):
    lacking = "model.safetensors"
    del online.files[lacking]
    with pytest.raises(InputError, match=f"^hf://org/name has none of {lacking}, "):
        imagepiece_jax.load("hf://org/name")
    for name in ("org/other", "org/name@v9"):  # in the words of huggingface_hub
        with pytest.raises(OSError, match="404 Client Error"):
            imagepiece_jax.load(f"hf://{name}")
