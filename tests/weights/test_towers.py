"""Vision towers inside the checkpoints of language models.

PaliGemma's is compared with a slow forward pass in NumPy by the names of big_vision,
LLaVA's with the whole CLIP that it is a part of; tests/parity compares both with
transformers.
"""

import json
import math
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
from flax import traverse_util

import imagepiece_jax
from imagepiece_jax.errors import InputError
from imagepiece_jax.weights import load
from tests import oracles
from tests.models import tiny
from tests.weights.test_layouts import stored

SIDE = 16
PATCH = 4
WIDTH = 24
DEPTH = 3
HEADS = 3
HIDDEN = 40
OUT = 10
HALF = [0.5, 0.5, 0.5]


def noise(*shape):
    spread = 1 / math.sqrt(math.prod(shape[:-1])) if len(shape) > 1 else 0.3
    values = np.random.default_rng(shape).normal(size=shape)
    return (spread * values).astype(np.float32)


def images():
    return np.random.default_rng(0).normal(size=(2, SIDE, SIDE, 3)).astype(np.float32)


def img():
    """Parameters of big_vision's ViT without a pool, whose head reads each token."""
    width = (WIDTH,)
    heads = (HEADS, WIDTH // HEADS)
    attention = "MultiHeadDotProductAttention_0"
    block = {
        "LayerNorm_0/scale": 1 + noise(*width),
        "LayerNorm_0/bias": noise(*width),
        "LayerNorm_1/scale": 1 - noise(*width),
        "LayerNorm_1/bias": noise(*width) / 2,
        f"{attention}/query/kernel": 3 * noise(WIDTH, *heads),
        f"{attention}/query/bias": noise(*heads),
        f"{attention}/key/kernel": 2 * noise(WIDTH, *heads),
        f"{attention}/key/bias": 2 * noise(*heads),
        f"{attention}/value/kernel": 4 * noise(WIDTH, *heads),
        f"{attention}/value/bias": 3 * noise(*heads),
        f"{attention}/out/kernel": noise(*heads, WIDTH),
        f"{attention}/out/bias": 3 * noise(*width),
        "MlpBlock_0/Dense_0/kernel": noise(WIDTH, HIDDEN),
        "MlpBlock_0/Dense_0/bias": noise(HIDDEN),
        "MlpBlock_0/Dense_1/kernel": noise(HIDDEN, WIDTH),
        "MlpBlock_0/Dense_1/bias": noise(*width),
    }
    factors = 1 + np.arange(DEPTH, dtype=np.float32) / 4  # of a block each
    start = "Transformer/encoderblock/"
    return {
        "embedding/kernel": noise(PATCH, PATCH, 3, WIDTH),
        "embedding/bias": noise(*width),
        "pos_embedding": 9 * noise(1, (SIDE // PATCH) ** 2, WIDTH),
        **{start + k: np.stack([f * v for f in factors]) for k, v in block.items()},
        "Transformer/encoder_norm/scale": 1 + noise(*width),
        "Transformer/encoder_norm/bias": noise(*width),
        "head/kernel": noise(WIDTH, OUT),
        "head/bias": noise(OUT),
    }


def forward(params, x):
    """(tokens after the last norm, what the head gives of each) in float64."""
    p = {name: value.astype(np.float64) for name, value in params.items()}
    block = "Transformer/encoderblock/"
    attention = "MultiHeadDotProductAttention_0"

    def norm(name, x, index=...):
        params = {part: p[f"{name}/{part}"][index] for part in ("scale", "bias")}
        return oracles.layer_norm(x, params)

    side = SIDE // PATCH
    x = x.reshape(len(x), side, PATCH, side, PATCH, 3).astype(np.float64)
    x = np.einsum("bypxqc,pqcd->byxd", x, p["embedding/kernel"]) + p["embedding/bias"]
    x = x.reshape(len(x), side * side, WIDTH) + p["pos_embedding"]
    for i in range(DEPTH):
        y = norm(f"{block}LayerNorm_0", x, i)
        q = (
            np.einsum("bnd,dhe->bhne", y, p[f"{block}{attention}/{'query'}/kernel"][i])
            + p[f"{block}{attention}/{'query'}/bias"][i][:, None]
        )
        k = (
            np.einsum("bnd,dhe->bhne", y, p[f"{block}{attention}/{'key'}/kernel"][i])
            + p[f"{block}{attention}/{'key'}/bias"][i][:, None]
        )
        v = (
            np.einsum("bnd,dhe->bhne", y, p[f"{block}{attention}/{'value'}/kernel"][i])
            + p[f"{block}{attention}/{'value'}/bias"][i][:, None]
        )
        scores = q @ k.swapaxes(2, 3) / math.sqrt(WIDTH // HEADS)
        y = oracles.softmax(scores) @ v
        y = np.einsum("bhne,hed->bnd", y, p[f"{block}{attention}/out/kernel"][i])
        x = x + y + p[f"{block}{attention}/out/bias"][i]
        y = norm(f"{block}LayerNorm_1", x, i)
        for name in ("Dense_0", "Dense_1"):
            y = y @ p[f"{block}MlpBlock_0/{name}/kernel"][i]
            y = y + p[f"{block}MlpBlock_0/{name}/bias"][i]
            if name == "Dense_0":
                y = oracles.gelu(y, "tanh")
        x = x + y
    x = norm("Transformer/encoder_norm", x)
    return x, x @ p["head/kernel"] + p["head/bias"]


LLM = {"llm/embedder/input_embedding": noise(7, 8), "llm/final_norm/scale": noise(8)}


def npz(folder, start="params/", scanned=True):
    """big_vision's file, of blocks stacked by a scan or by their numbers."""
    arrays = {f"{start}{name}": value for name, value in LLM.items()}
    for name, value in img().items():
        before, block, after = name.partition("encoderblock/")
        if scanned or not block:
            arrays[f"{start}img/{name}"] = value
            continue
        for i in range(DEPTH):
            arrays[f"{start}img/{before}encoderblock_{i}/{after}"] = value[i]
    np.savez(folder / "pt_224.npz", **arrays)
    return folder / "pt_224.npz"


def openpi(folder, end="", **options):
    """A policy's parameters in Orbax; `end` is what nnx.State puts behind names."""
    tree = {f"PaliGemma/img/{k}{end}": v for k, v in img().items()}
    tree |= {f"PaliGemma/{k}{end}": v for k, v in LLM.items()}
    tree |= {f"action_in_proj/kernel{end}": noise(4, 8)}
    tree = {"params": traverse_util.unflatten_dict(tree, sep="/")}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
        checkpointer.save((folder / "pi0_base" / "params").absolute(), tree)
    return folder / "pi0_base"


PALIGEMMA = {
    "big_vision": npz,
    "big_vision without params": lambda folder: npz(folder, ""),
    "big_vision without a scan": lambda folder: npz(folder, scanned=False),
    "openpi": openpi,
    "openpi, its params": lambda folder: openpi(folder) / "params",
    "openpi while it trains": lambda folder: openpi(folder, "/value"),
}


def compare(vit, expected):
    with jax.default_matmul_precision("highest"):
        maps = imagepiece_jax.features(vit, images(), reshape=False)
        projected = vit.projector(maps.patches)
    for ours, theirs in zip((maps.patches, projected), expected, strict=True):
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()


@pytest.mark.parametrize("kind", PALIGEMMA)
def test_towers_of_paligemma_compute_what_the_names_say(tmp_path, kind):
    vit = imagepiece_jax.load(PALIGEMMA[kind](tmp_path))
    compare(vit, forward(img(), images()))
    assert vit.model.mean == vit.model.std == (0.5, 0.5, 0.5)
    assert not vit.projector.prefix
    assert vit.name is None


def test_of_orbax_the_tower_alone_is_read(tmp_path):
    path = openpi(tmp_path, use_ocdbt=False)  # a folder an array
    others = [*path.glob("params/*llm*"), *path.glob("params/*action*")]
    assert len(others) == 3
    for folder in others:
        (folder / ".zarray").unlink()
    vit = imagepiece_jax.load(path)
    compare(vit, forward(img(), images()))
    assert str(vit.source) == f"weights file {path / 'params'}"


CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "patch_size": 4,
    "image_size": 16,
    "hidden_act": "gelu",
}
LLAVA = {"model_type": "llava", "vision_config": CLIP}
IMAGES = {"image_mean": HALF, "image_std": HALF}


def clip():
    """Tensors of transformers' CLIP in the fixture, those of its tower alone."""
    tensors, _ = stored("transformers_clip")
    start = "vision_model."
    return {k: v for k, v in tensors.items() if k.startswith(start)}


def projector(width=24):
    start = "multi_modal_projector.linear"
    return {
        f"{start}_1.weight": noise(OUT, width),
        f"{start}_1.bias": noise(OUT),
        f"{start}_2.weight": noise(OUT, OUT),
        f"{start}_2.bias": noise(OUT),
    }


def write(folder, config, tensors):
    folder.mkdir(exist_ok=True)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(IMAGES))
    return folder


def llava(folder, lacking=(), change=None, **changes):
    tensors = {f"vision_tower.{name}": value for name, value in clip().items()}
    tensors |= projector() | {"language_model.model.norm.weight": noise(8)}
    tensors |= change or {}
    tensors = {k: v for k, v in tensors.items() if not k.startswith(tuple(lacking))}
    return write(folder, {**LLAVA, **changes}, tensors)


@pytest.fixture(scope="module")
def full_clip(tmp_path_factory):
    """What the blocks of the whole CLIP give, without its last norm."""
    vit = imagepiece_jax.load(write(tmp_path_factory.mktemp("clip"), CLIP, clip()))
    assert vit.projector is None
    return imagepiece_jax.features(vit, images(), layers=2, norm=False)


@pytest.mark.parametrize("layer, block", [(-2, 0), (None, 0), (1, 0), (-1, 1), (2, 1)])
def test_llava_ends_at_its_layer(tmp_path, full_clip, layer, block):
    changes = {} if layer is None else {"vision_feature_layer": layer}
    vit = imagepiece_jax.load(llava(tmp_path, **changes))
    assert vit.model.depth == block + 1
    maps = imagepiece_jax.features(vit, images())
    np.testing.assert_allclose(maps.patches, full_clip.layers[block].patches, atol=1e-5)
    assert np.abs(maps.patches - full_clip.layers[1 - block].patches).max() > 0.1


def test_the_projector_is_two_layers_with_a_gelu_between(tmp_path):
    vit = imagepiece_jax.load(llava(tmp_path, projector_hidden_act="quick_gelu"))
    (first, bias), (last, end) = vit.projector.layers
    x = noise(5, 24)
    tensors = projector()
    hidden = oracles.gelu(x @ tensors[f"{FIRST}.weight"].T + bias, "quick")
    expected = hidden @ tensors[f"{LAST}.weight"].T + end
    np.testing.assert_allclose(vit.projector(x), expected, atol=1e-5)
    assert first.shape == (24, OUT)
    assert last.shape == (OUT, OUT)
    assert imagepiece_jax.load(llava(tmp_path)).projector.gelu == "exact"


@pytest.mark.parametrize("strategy", ["default", "full"])
def test_the_class_token_is_for_the_language_model_where_it_says_so(tmp_path, strategy):
    path = llava(tmp_path, vision_feature_select_strategy=strategy)
    vit = imagepiece_jax.load(path)
    assert vit.projector.prefix == (strategy == "full")
    assert vit.model.arch.class_token  # which is computed with in either case


def test_a_saved_tower_is_the_same_and_reduces(tmp_path):
    theirs = llava(tmp_path / "theirs", projector_hidden_act="gelu_new")
    vit = imagepiece_jax.load(theirs)
    imagepiece_jax.save(tmp_path / "ours", vit)
    vit = vit.with_reduction({"name": "tome", "r": 5})
    imagepiece_jax.save(tmp_path / "tome", vit)
    for name, one in (("ours", vit.with_reduction(None)), ("tome", vit)):
        again = imagepiece_jax.load(tmp_path / name)
        assert again.model == one.model
        assert again.projector.gelu == "tanh"
        trees = [(a.variables, a.projector.tensors()) for a in (one, again)]
        assert jax.tree.all(jax.tree.map(np.array_equal, *trees))
    other = tiny.pretrained(depth=1)
    imagepiece_jax.save(tmp_path / "ours", other)  # takes the place of all files
    assert not (tmp_path / "ours" / "projector.safetensors").exists()


SIGLIP = {**CLIP, "model_type": "siglip_vision_model"}
BIASED = "layer 0 of its projector"
LAYER = "vision_feature_layer"
STRATEGY = "vision_feature_select_strategy"
FIRST = f"multi_modal_projector.linear_{1}"
LAST = f"multi_modal_projector.linear_{2}"
NINE = "layer 1 of its projector", [(OUT, 9), (OUT,)]
POOL = "multi_modal_projector.pool.weight"
OTHER = {**CLIP, "model_type": "pixtral"}
EMBEDDING = "language_model.model.embed_tokens.weight"
NO_TOWER = {"lacking": ["vision"], "change": {EMBEDDING: noise(3, 8)}}
NO_PROJECTOR = "is a vision tower in a language model, without its projector"


@pytest.mark.parametrize(
    "changes, field, value, problem",
    [
        *(({LAYER: x}, LAYER, x, "") for x in ([-2, -1], 0, -3, 3)),
        ({STRATEGY: "cls"}, STRATEGY, "cls", ""),
        ({"vision_config": SIGLIP}, STRATEGY, "default", "is 'default', which drops"),
        ({"vision_config": OTHER}, "vision_config.model_type", "pixtral", ""),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act", "relu", ""),
        ({"vision_config": CLIP | {"num_hidden_layers": 3}}, "depth", 3, "is 3 in con"),
        ({"lacking": ["vision_tower"]}, "", ..., "has tensors, such as "),
        (NO_TOWER, "", EMBEDDING, f"holds a text model, as tensor {EMBEDDING}"),
        ({"lacking": ["multi_modal"]}, "", None, NO_PROJECTOR),
        ({"lacking": ["multi_modal", "language"]}, "", None, NO_PROJECTOR),
        ({"change": {f"{FIRST}.weight": noise(OUT, 25)}}, "projector", 25, "takes tok"),
        ({"change": {f"{LAST}.weight": noise(OUT, 9)}}, *NINE, "has tensors of"),
        ({"lacking": [LAST]}, "its projector", None, "lacks layer 1"),
        ({"lacking": [f"{FIRST}.bias"]}, BIASED, None, "has no bias"),
        ({"multimodal_projector_bias": False}, BIASED, None, "has a bias"),
        ({"change": {f"{FIRST}.SCB": noise(3)}}, f"tensor {FIRST}.SCB", None, "has no"),
        ({"change": {POOL: noise(3)}}, f"tensor {POOL}", None, "has no place in"),
    ],
)
def test_what_is_no_tower_of_ours_is_refused(tmp_path, changes, field, value, problem):
    with pytest.raises(InputError) as error:
        imagepiece_jax.load(llava(tmp_path, **changes))
    assert error.value.field == field
    assert value in (error.value.value, ...)
    assert error.value.problem.startswith(problem)
    assert "\n" not in str(error.value)


def test_a_lacking_file_beside_a_tower_is_named(tmp_path):
    path = llava(tmp_path)
    (path / "preprocessor_config.json").unlink()
    message = "mean cannot be read from the tensors .* std.; place its"
    with pytest.raises(InputError, match=message):
        imagepiece_jax.load(path)
    fields = {"mean": HALF, "std": HALF}
    imagepiece_jax.save(tmp_path / "ours", imagepiece_jax.load(path, **fields))
    file = tmp_path / "ours" / "projector.safetensors"
    safetensors.numpy.save_file({"weight": noise(3)}, file)
    with pytest.raises(InputError, match="projector.safetensors: tensor weight has no"):
        imagepiece_jax.load(tmp_path / "ours")
    safetensors.numpy.save_file({"projector.0.bias": noise(2, 3)}, file)
    with pytest.raises(InputError, match="layer 0 of its projector has tensors of"):
        imagepiece_jax.load(tmp_path / "ours")
    file.unlink()
    with pytest.raises(InputError, match="in a language model, without its projector"):
        imagepiece_jax.load(tmp_path / "ours")


BLOCK_BIAS = "img/Transformer/encoderblock/LayerNorm_0/bias"


@pytest.mark.parametrize(
    "name, value, field, problem",
    [
        (BLOCK_BIAS, np.float32(1), f"tensor {BLOCK_BIAS}", "is of ()"),
        ("img/head/bias", None, BIASED, "has no bias"),
    ],
)
def test_damaged_parameters_of_paligemma_are_refused(
    tmp_path, name, value, field, problem
):
    arrays = {f"img/{k}": v for k, v in img().items()} | LLM | {name: value}
    arrays = {k: v for k, v in arrays.items() if v is not None}
    np.savez(tmp_path / "pt.npz", **arrays)
    with pytest.raises(InputError) as error:
        imagepiece_jax.load(tmp_path / "pt.npz")
    assert error.value.field == field.replace("/", ".")
    assert error.value.problem == problem


def test_orbax_without_its_data_is_one_sentence(tmp_path):
    path = openpi(tmp_path) / "params"
    for part in path.iterdir():
        if part.name != "_METADATA":
            shutil.rmtree(part) if part.is_dir() else part.unlink()
    with pytest.raises(InputError, match="or not a _METADATA file: ") as error:
        imagepiece_jax.load(path)
    assert "spec" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_of_llava_alone_does_not_say_its_layer(tmp_path):
    path = llava(tmp_path / "llava") / "model.safetensors"
    with pytest.raises(InputError, match="as LLaVA's, which reads a layer that config"):
        imagepiece_jax.load(path, name="vit_base_patch32_clip_224.laion2b")
    tree = {"params": {"PaliGemma": {"llm": {"embedder": noise(3, 4)}}}}
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save((tmp_path / "params").absolute(), tree)
    message = "params/_METADATA holds a text model, as tensor params.PaliGemma.llm.e"
    with pytest.raises(InputError, match=message):
        imagepiece_jax.load(tmp_path)
    assert load.read_source(tmp_path).name == "params"
