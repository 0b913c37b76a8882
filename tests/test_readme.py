import dataclasses
import functools
import importlib
import importlib.util
import pathlib
import re
import shlex
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import ExifTags, Image

import imagepiece_jax
from imagepiece_jax.commands import export
from imagepiece_jax.kernels import merging, ranking, similarity
from imagepiece_jax.models import registry
from imagepiece_jax.models.config import IMAGENET_MEAN
from imagepiece_jax.models.create import create_model
from imagepiece_jax.reduction import block_plan, reducers, state
from imagepiece_jax.reduction.state import ReducerInputs
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.weights import location
from tests.helpers import named_models, oracles, tiny_vit
from tests.helpers.named_models import facts
from tests.helpers.picture_files import noise, write_images
from tests.helpers.rounding import assert_close
from tests.helpers.run_command import call
from tests.helpers.shallow_deit import deit_ti
from tests.test_configs import parse_command

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [
    README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "PERFORMANCE.md",
    ROOT / "experiments" / "README.md",
    *sorted(DOCS.rglob("*.md")),
]


def run(page, start, space):
    """The names in `space` after the page's Python block that starts with `start`."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    code = next(code for code in blocks if code.startswith(start))
    exec(compile(code, page.name, "exec"), space)
    return space


def decide_slots(reducer, n_out, x):
    """Slots of tokens [B, n, D], whose first feature is their attention."""
    counts = block_plan.StepCounts(n_in=x.shape[1], n_out=n_out)
    size = np.ones(x.shape[:2], np.float32)
    inputs = ReducerInputs(x=x, size=size, cls_attn=x[..., 0])
    return tiny_vit.compiled(lambda tokens: reducer(tokens, counts))(inputs)


TOKENS = np.random.default_rng(0).normal(size=(3, 10, 8)).astype(np.float32)


def test_the_new_method_keeps_tokens_of_largest_norm():
    space = run(DOCS / "methods.md", "# imagepiece_jax/reduction/methods/", {})
    (step,) = space["NormMerge"](keep_rate=0.5, blocks=(1,)).steps(facts(4))
    plan = block_plan.plan_blocks(4, 16, [step])
    assert [layer.mlp_tokens for layer in plan] == [17, 9, 9, 9]
    slots = decide_slots(step.reducer, 5, TOKENS).slot_of_token
    for x, slot_of_token in zip(TOKENS, slots, strict=True):
        kept = oracles.top_k(np.linalg.norm(x, axis=-1), 5) != merging.DROPPED
        nearest = oracles.cosine(x, x[kept]).argmax(axis=1)  # a kept token's: itself
        np.testing.assert_array_equal(slot_of_token, nearest)


def test_the_written_reducer_fills_slots_and_drops_the_rest():
    space = {"jax": jax, "jnp": jnp, "dataclasses": dataclasses, "ClassVar": ClassVar}
    for module in (ranking, merging, similarity, block_plan, state, reducers):
        space |= vars(module)
    start = "@dataclasses.dataclass(frozen=True)\nclass PruneAndMerge"
    run(DOCS / "reducers.md", start, space)
    slots = decide_slots(space["PruneAndMerge"](keep=7), 4, TOKENS).slot_of_token
    for slot_of_token, x in zip(slots, TOKENS, strict=True):
        best = oracles.by_score(x[:, 0])
        expected = np.full(10, merging.DROPPED)
        expected[best[:7]] = oracles.cosine(x[best[:7]], x[best[:4]]).argmax(axis=1)
        np.testing.assert_array_equal(slot_of_token, expected)


def list_command_lines(page):
    """Words of every command line in a page's blocks without a language."""
    text = page.read_text("utf-8").replace("\\\n", " ")
    for code in re.findall(r"^ *```\n(.*?)^ *```", text, re.M | re.S):
        for line in re.findall(r"^ *(?:python|imagepiece) .*", code, re.M):
            yield shlex.split(line, comments=True)


# config_flags reads files this way on Python 3.11.
@pytest.mark.filterwarnings("ignore:the load_module")
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_command_lines_parse(page):
    for words in list_command_lines(page):
        if words[0] == "imagepiece":
            words = ["python", "-m", f"imagepiece_jax.commands.{words[1]}", *words[2:]]
        if words[1] == "train.py":
            line = re.sub(r"--(workdir \S+|dry_run)", "", shlex.join(words[2:]))
            assert not line or RunConfig.from_config(parse_command(line))
            continue
        if words[1] != "-m":
            continue
        name = "experiments.paper" if words[2] == "experiments" else words[2]
        spec = importlib.util.find_spec(name)
        is_command = name.startswith("imagepiece_jax.commands.")
        if is_command or "run_command(main" in pathlib.Path(spec.origin).read_text():
            main = importlib.import_module(name).main
            call(functools.wraps(main)(lambda *_, **__: None), *words[3:]).ok()


def strip_lines(text):
    return "".join(f"{line.strip()}\n" for line in ["", *text.splitlines()])


def test_pages_quote_their_files():
    """Four or more lines of each file of the tour; a line of each of design.md."""
    text = (DOCS / "tour.md").read_text("utf-8")
    stop = r"^## \d.*?\]\(\.\./(.+?\.py)\).*?```python\n(.*?)```"
    stops = re.findall(stop, text, re.M | re.S)
    assert len(stops) == len(re.findall(r"^## \d", text, re.M)) >= 6
    assert all(code.count("\n") >= 4 for _, code in stops)
    text = (DOCS / "design.md").read_text("utf-8")
    quotes = re.findall(r"\]\(\.\./([^)#]+)\S*\): `(.+)`\n", text)
    assert len(quotes) == 10
    for file, code in stops:
        source = (ROOT / file).read_text("utf-8")
        assert strip_lines(code) in strip_lines(source), file
    for file, code in quotes:
        assert code in (ROOT / file).read_text("utf-8"), file


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    for name in ("cat.jpg", "dog.jpg"):
        Image.new("RGB", (300, 200), "gray").save(tmp_path / name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def downloaded(tmp_path, monkeypatch, assets, photographs, request):
    """README's file of weights in the working folder, with few blocks, and no hub."""
    name = "deit_tiny_patch16_224-a1311bcf.pth"
    assert f"https://dl.fbaipublicfiles.com/deit/{name}\n" in README.read_text()
    (tmp_path / name).symlink_to(assets / "weights" / "deit_tiny_patch16_224.pth")
    deit_ti(monkeypatch, getattr(request, "param", 2))
    monkeypatch.setattr(location, "fetch_folder", None)
    return tmp_path


def test_the_example_of_weights_runs(downloaded):
    logits = run(DOCS / "inference.md", "import imagepiece_jax\n", {})["logits"]
    assert logits.shape == (8, 1000)
    assert bool(jnp.isfinite(logits).all())


@pytest.mark.parametrize("downloaded", [4], indirect=True)
def test_the_example_of_features_runs(downloaded):
    (downloaded / "imagepiece_jax").symlink_to(DOCS.parent / "imagepiece_jax")
    space = run(DOCS / "features.md", "import imagepiece_jax\n", {})
    assert space["features"].shape == (2, 14, 14, 192)
    assert len(space["maps"].layers) == 4


def test_a_photograph_has_its_class_without_this_package(downloaded, assets):
    """Landscapes, portraits, and a phone's rotated photograph."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    weights = "deit_tiny_patch16_224-a1311bcf.pth"
    call(export.main, weights, "model.onnx").ok()
    predict = imagepiece_jax.Predictor(imagepiece_jax.load(weights))
    panda = pathlib.Path("imagepiece_jax/inference/photographs/panda.jpg")
    panda.parent.mkdir(parents=True)
    photographs = sorted((assets / "data" / "imagenette_mini" / "val").rglob("*.*"))
    for count, file in enumerate(photographs[::20]):
        with Image.open(file) as image:
            exif = image.getexif()
            exif[ExifTags.Base.Orientation] = 1 + count % 8
            image.save(panda, exif=exif)
        space = run(DOCS / "export.md", "import json\nimport pathlib\n", {})
        best = predict(panda)[0]
        assert space["facts"]["class_names"][space["odds"].argmax()] == best.label
        assert abs(space["odds"].max() - best.probability) < 1e-4


@pytest.fixture
def hub_of_pages(photographs, tmp_path_factory, monkeypatch):
    parent = tmp_path_factory.mktemp("hub")
    names = ["vit_base_patch16_clip_224.openai_ft_in1k"]  # of docs/models.md
    names.append("vit_small_patch14_reg4_dinov2.lvd142m")
    sizes = {"depth": 2, "embed_dim": 24, "num_heads": 2}
    folders = {}
    for name in names:
        model = create_model(named_models.config(name, **sizes))
        vit = imagepiece_jax.Pretrained(model, tiny_vit.variables(model))
        folders[f"hf://timm/{name}"] = imagepiece_jax.save(vit, parent / name)
    monkeypatch.setattr(location, "fetch_folder", folders.__getitem__)


def test_the_block_of_commands_runs_as_pasted(downloaded, monkeypatch):
    """Its three commands, on a few images, with one training step."""
    pytest.importorskip("onnx")
    pytest.importorskip("matplotlib")
    for split, images in zip(("train", "val"), noise(2, 32, 64, 64), strict=True):
        write_images(downloaded / "imagenette2-160" / split / "n01440764", images)
    text = README.read_text("utf-8")
    lines = re.findall(r"^imagepiece (\w+) (.*)$", text, re.MULTILINE)
    assert [name for name, _ in lines] == ["recover", "compare", "export"]
    printed = ""
    for name, words in lines:
        main = importlib.import_module(f"imagepiece_jax.commands.{name}").main
        words = words.replace("--steps 160", "--steps 1")
        printed += call(main, *words.split()).ok().out
    for word in ("saved in half", "| `0.5`", "half.onnx: "):
        assert word in text and word in printed


@pytest.mark.parametrize("count", [1, 2])
def test_the_pages_loop_trains_alike_and_compiles_once(count, monkeypatch, caplog):
    monkeypatch.setattr(jax, "device_count", lambda: count)
    vit = tiny_vit.pretrained("random:keep_rate=0.7:blocks=(0,)", depth=2)
    model = vit.model.with_execution(drop_path_rate=0.9)
    vit = dataclasses.replace(vit, model=model)
    labels = np.arange(4)
    batches = [(tiny_vit.images(4, seed), labels) for seed in range(3)]
    space = {"vit": vit, "batches": batches}
    with jax.log_compiles():
        run(DOCS / "own_loop.md", "import jax\n", space)
    assert caplog.text.count("Compiling jit(train_step)") == 1
    assert jax.typeof(space["images"]).sharding.mesh.size == count
    params = vit.variables["params"]
    state = space["optimizer"].init(params)
    for step, (images, labels) in enumerate(batches):
        key = jax.random.fold_in(jax.random.key(0), step)
        arguments = (params, state, images, labels, key)
        params, state, loss = space["train_step"](*arguments)
        assert float(loss) == pytest.approx(space["losses"][step], rel=1e-4)
    chex.assert_trees_all_equal(space["trained"].variables["params"], space["params"])
    first_loss = space["mean_loss"](params, *batches[0], jax.random.key(0))
    assert first_loss < space["losses"][0]


def test_the_lines_with_the_hub_run(hub_of_pages, capsys):
    space = {"imagepiece_jax": imagepiece_jax}
    run(DOCS / "features.md", "dinov2 = ", space)
    name = space["dinov2"].removeprefix("hf://timm/")
    assert space["vit"].config.arch == registry.model_config(name).arch
    assert capsys.readouterr().out == "(1, 24) (1, 16, 16, 24)\n"


def test_the_examples_of_configs_run(tmp_path, monkeypatch):
    name = "vit_small_patch16_224.augreg_in21k_ft_in1k"
    monkeypatch.setitem(registry.public_models()[name.partition(".")[0]], "depth", 1)
    monkeypatch.setattr(registry, "model_config", registry.model_config.__wrapped__)
    monkeypatch.chdir(tmp_path)
    variables = tiny_vit.variables(create_model(name))
    tiny_vit.write("my.npz", variables)
    space = {"imagepiece_jax": imagepiece_jax}
    vit = run(DOCS / "weight_files.md", "import dataclasses\n\nvit = ", space)["vit"]
    assert (vit.config.name, vit.config.mean) == (name, IMAGENET_MEAN)
    assert vit.config.arch.gelu == "tanh"
    chex.assert_trees_all_equal(vit.variables, variables)


def test_the_page_of_models_runs(hub_of_pages, tmp_path):
    """Its blocks one after the other: load, save and load, a function, NNX."""
    space = {}
    for start in ("import imagepiece_jax\n", "imagepiece_jax.save(", "import jax\n"):
        run(DOCS / "models.md", start, space)
    function_vectors = space["vectors"]
    run(DOCS / "models.md", "from flax import nnx\n", space)
    assert space["vit"].image_size == (224, 280)
    assert space["vit"].reduction.name == "tome"
    assert (tmp_path / "dinov2_tome" / "model.safetensors").is_file()
    assert_close(space["vectors"], function_vectors)
