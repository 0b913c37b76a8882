"""Uploads to a local server with the hub's API."""

import pytest

import imagepiece_jax
from imagepiece_jax.commands import export as command
from imagepiece_jax.errors import RunError
from imagepiece_jax.exporters import card
from imagepiece_jax.exporters.export import export
from tests.helpers import hub_server, small_photographs, tiny_vit
from tests.helpers.refused_calls import refused
from tests.helpers.run_command import call

constants = pytest.importorskip("huggingface_hub.constants")
pytest.importorskip("onnxruntime")

# httpx deprecates how huggingface_hub 2.4 passes an iterator of bytes.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

NAME = f"{hub_server.USER}/tower"
FILES = {"README.md", "model.onnx", "model.onnx.json", "preprocessor_config.json"}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub where `me` is logged in."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "writes")
    with hub_server.serving() as (hub, address):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield hub


@pytest.fixture(scope="module")
def vit():
    return tiny_vit.pretrained("tome:r=4", num_classes=0, depth=2)


def export_and_push(vit, folder, name=NAME, **options):
    """Export and push with a card."""
    options = {"layout": "fastembed", "images": small_photographs.draw(40)} | options
    return export(vit, folder, push=name, **options)


@pytest.mark.parametrize("owner", [hub_server.USER, hub_server.GROUP])
@pytest.mark.parametrize("large", [(".onnx",), ()])
def test_a_folder_is_uploaded_in_one_commit(tmp_path, hub, vit, owner, large):
    hub.large = large
    name = f"{owner}/tower"
    (tmp_path / "out").mkdir()
    export_and_push(vit, tmp_path / "out", name)
    assert hub.commits == [(name, sorted(FILES))]
    uploaded = hub.repositories[name]
    for file in FILES:
        assert uploaded[file] == (tmp_path / "out" / file).read_bytes()
    assert bool(hub.stored) == bool(large)


def test_an_earlier_upload_is_replaced(tmp_path, hub, vit):
    export_and_push(vit, tmp_path / "out")
    before = dict(hub.repositories[NAME])
    export_and_push(vit.with_reduction(None), tmp_path / "out")
    assert len(hub.commits) == 2
    after = hub.repositories[NAME]
    assert {file for file in before if after[file] != before[file]} == FILES - {
        "preprocessor_config.json"
    }


def test_only_the_exports_files_are_uploaded(tmp_path, hub, vit):
    """Without a layout the folder may have foreign files."""
    (tmp_path / "diary.txt").write_text("mine")
    export_and_push(vit, tmp_path / "model.onnx", layout=None)
    assert hub.commits == [(NAME, ["README.md", "model.onnx", "model.onnx.json"])]


def check_refused(hub, folder, vit, *texts, name=NAME, error=None, **options):
    """Check that a push is refused in one sentence, and nothing is written."""
    before = {name: dict(files) for name, files in hub.repositories.items()}
    if error is None:
        with refused(*texts) as caught:
            export_and_push(vit, folder / "refused", name, **options)
    else:
        with pytest.raises(error) as caught:
            export_and_push(vit, folder / "refused", name, **options)
        assert all(text in str(caught.value) for text in texts), caught.value
    assert "\n" not in str(caught.value)
    assert not (folder / "refused").exists()
    assert not hub.commits
    assert hub.repositories == before


def test_mistakes_are_refused_before_the_work(tmp_path, hub, vit, monkeypatch):
    for name in ("tower", "a/b/c", "me/no spaces", ""):
        check_refused(hub, tmp_path, vit, "push", "OWNER/NAME", name=name)
    check_refused(hub, tmp_path, vit, "push", "images", images=None)
    check_refused(hub, tmp_path, vit, "you", "me, team", name="you/tower")
    for content in ({"README.md": b"mine"}, {"model.onnx": b"mine"}):
        hub.repositories = {NAME: content}
        check_refused(hub, tmp_path, vit, NAME, "exists", "another name")
    hub.repositories = {}
    monkeypatch.setenv("HF_TOKEN", "reads")
    check_refused(hub, tmp_path, vit, "may not write", "hf auth login")
    monkeypatch.setenv("HF_TOKEN", "unknown")
    check_refused(hub, tmp_path, vit, "does not accept the token")
    monkeypatch.delenv("HF_TOKEN")
    hub.requests.clear()
    check_refused(hub, tmp_path, vit, "login", "HF_TOKEN")
    assert not hub.requests


def test_unreachable_hubs_are_reported_first(tmp_path, hub, vit, monkeypatch):
    hub.failing = {"whoami": 500}
    check_refused(hub, tmp_path, vit, "500", error=RunError)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    check_refused(hub, tmp_path, vit, "refused", error=RunError)


@pytest.mark.parametrize("part", ["create", "preupload", "batch", "store", "commit"])
def test_a_failed_upload_leaves_no_file(tmp_path, hub, vit, part):
    hub.failing = {part: 403}
    with refused("push", "may not write"):
        export_and_push(vit, tmp_path / "out")
    assert not hub.commits
    assert all(files == {".gitattributes": b""} for files in hub.repositories.values())
    hub.failing = {}
    export_and_push(vit, tmp_path / "out")  # into the empty repository
    assert hub.commits == [(NAME, sorted(FILES))]


def test_a_dry_run_lists_the_files(tmp_path, hub, vit):
    weights = imagepiece_jax.save(vit, tmp_path / "weights")
    images = small_photographs.write_photographs(tmp_path / "images", 40)
    words = [weights, tmp_path / "out", "--layout", "fastembed", "--images", images]
    ended = call(command.main, *words, "--push", NAME, "--dry-run").ok()
    assert not hub.requests
    assert f"would push to {constants.ENDPOINT}/{NAME}:" in ended.out
    for file in FILES:
        size = (tmp_path / "out" / file).stat().st_size
        assert f"  {file}, {size:,} bytes" in ended.out
    ended = call(command.main, *words, "--dry-run")
    assert (ended.status, "push" in ended.err) == (2, True)
    ended = call(command.main, *words, "--push", NAME).ok()
    assert f"pushed to {constants.ENDPOINT}/{NAME}:" in ended.out
    assert card.SECTION_MARK.encode() in hub.repositories[NAME]["README.md"]
