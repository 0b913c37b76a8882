"""Folders that transformers and timm write: nothing but the path is given.

Models of tools/originals, reduced in width and depth, saved by their own package with
their own image processor; float32 with the highest precision of products.
"""

import pytest

import imagepiece_jax
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.problem_type import PROBLEMS
from imagepiece_jax.weights import transformers_config

for package in ("torch", "timm", "transformers"):
    pytest.importorskip(package)

import timm  # noqa: E402
import transformers  # noqa: E402
from timm.models import _hub  # noqa: E402

from tests.models import make, tiny  # noqa: E402
from tests.parity.record import apart, computed, noise  # noqa: E402
from tools import originals  # noqa: E402
from tools.originals import CLASSES, config  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, when it saves
LABELS = {i: f"class {i}" for i in range(CLASSES)}
EPS = 0.03  # far from every default, so that what is not read shows
SQUARE = {"height": originals.SIDE, "width": originals.SIDE}


def clip():
    return transformers.CLIPConfig(
        text_config=originals.TEXT,
        vision_config=originals.clip_config(layer_norm_eps=EPS).to_dict(),
        projection_dim=CLASSES,
    )


def embedding(model, x):
    return model.visual_projection(model.vision_model(x).pooler_output)


# model, its outputs, its image processor and what that says
MODELS = {
    "vit": lambda: (
        transformers.ViTForImageClassification(
            config(transformers.ViTConfig, id2label=LABELS, hidden_act="gelu_new")
        ),
        originals.logits,
        transformers.ViTImageProcessor(size=SQUARE),
        {"crop": 1.0, "crop_mode": "squash", "interpolation": "bilinear"},
    ),
    "deit": lambda: (
        transformers.DeiTForImageClassificationWithTeacher(
            config(transformers.DeiTConfig, id2label=LABELS, layer_norm_eps=EPS)
        ),
        originals.logits,
        transformers.DeiTImageProcessor(
            size={"height": 20, "width": 20}, crop_size=SQUARE
        ),
        {"crop": 0.8, "crop_mode": "squash", "interpolation": "bicubic"},
    ),
    "dinov2": lambda: (
        transformers.Dinov2Model(
            config(transformers.Dinov2Config, use_swiglu_ffn=True, layer_norm_eps=EPS)
        ),
        originals.pooler,
        transformers.BitImageProcessor(size={"shortest_edge": 20}, crop_size=SQUARE),
        {"crop": 0.8, "crop_mode": "center", "interpolation": "bicubic"},
    ),
    "dinov2_with_registers": lambda: (
        transformers.Dinov2WithRegistersModel(
            config(transformers.Dinov2WithRegistersConfig, hidden_act="quick_gelu")
        ),
        originals.pooler,
        transformers.BitImageProcessor(
            size={"shortest_edge": 20}, crop_size=SQUARE, resample=2
        ),
        {"crop": 0.8, "crop_mode": "center", "interpolation": "bilinear"},
    ),
    "clip": lambda: (
        transformers.CLIPModel(clip()),
        embedding,
        transformers.CLIPImageProcessor(
            size={"shortest_edge": originals.SIDE}, crop_size=SQUARE
        ),
        {"crop": 1.0, "crop_mode": "center", "interpolation": "bicubic"},
    ),
    "clip_vision_model": lambda: (
        transformers.CLIPVisionModel(originals.clip_config()),
        originals.pooler,
        transformers.CLIPImageProcessor(
            size={"shortest_edge": originals.SIDE}, crop_size=SQUARE
        ),
        {"crop": 1.0, "crop_mode": "center", "interpolation": "bicubic"},
    ),
    "dinov3_vit": lambda: (
        transformers.DINOv3ViTModel(
            config(
                transformers.DINOv3ViTConfig,
                num_register_tokens=2,
                use_gated_mlp=True,
                hidden_act="silu",
                rope_theta=50.0,
            )
        ),
        originals.pooler,
        transformers.DINOv3ViTImageProcessor(size=SQUARE),
        {"crop": 1.0, "crop_mode": "squash", "interpolation": "bilinear"},
    ),
    "siglip": lambda: (
        transformers.SiglipModel(originals.siglip_config()),
        lambda model, x: model.vision_model(x).pooler_output,
        transformers.SiglipImageProcessor(size=SQUARE),
        {"crop": 1.0, "crop_mode": "squash", "interpolation": "bicubic"},
    ),
}

MODELS["siglip, classes"] = lambda: (
    transformers.SiglipForImageClassification(
        originals.siglip_config(
            id2label=LABELS, problem_type="multi_label_classification"
        )
    ),
    originals.logits,
    *MODELS["siglip"]()[2:],
)


@pytest.mark.parametrize("name", MODELS)
def test_transformers_folder(tmp_path, name):
    model, forward, processor, prepared = MODELS[name]()
    theirs = originals.run(lambda x: forward(originals.randomize(model), x))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    vit = imagepiece_jax.load(tmp_path)
    ours = computed(*tiny.pair(vit), originals.images()).logits
    assert apart(ours, theirs) < 1e-5
    assert vit.config.mean == pytest.approx(processor.image_mean)
    assert vit.config.std == pytest.approx(processor.image_std)
    wanted = Preprocessing(originals.SIDE, rule="transformers", **prepared)
    assert vit.preprocessing == wanted
    labels = name in ("vit", "deit", "siglip, classes")
    assert vit.config.problem_type == (model.config.problem_type or PROBLEMS[0])
    assert vit.class_names == (tuple(LABELS.values()) if labels else None)


@pytest.mark.parametrize("kind", transformers_config.MODEL_TYPES)
def test_what_a_config_leaves_out_is_as_in_transformers(kind):
    ours = transformers_config.MODEL_TYPES[kind].fields
    theirs = transformers.AutoConfig.for_model(kind).to_dict()
    assert ours == {field: theirs[field] for field in ours}


TIMM = {
    "test_vit.r160_in1k": {},
    "test_vit2.r160_in1k": {"num_classes": 3},
    "test_vit3.r160_in1k": {"img_size": 64, "act_layer": "quick_gelu"},
    "vit_tiny_patch16_224.augreg_in21k_ft_in1k": {
        "depth": 2,
        "embed_dim": 24,
        "img_size": 32,
        "reg_tokens": 2,
    },
}


def saved_by_timm(path, name, **arguments):
    """(model, images, logits) of a random model of timm, which it saves for the hub."""
    model = originals.randomize(timm.create_model(name, **arguments))
    images = noise(2, *model.patch_embed.img_size, 3)
    with originals.torch.no_grad():
        theirs = model(originals.torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    labels = [f"class {i}" for i in range(model.num_classes)]
    _hub.save_for_hf(model, path, {"label_names": labels}, safe_serialization=True)
    return model, images, theirs


def agrees(path, images, theirs, **fields):
    """The model that `load` makes, which computes the same."""
    vit = imagepiece_jax.load(path, **fields)
    assert apart(computed(*tiny.pair(vit), images).logits, theirs) < 1e-5
    return vit


# Sizes that compile in a second, and what else a model is made with.
TINY = {"depth": 2, "embed_dim": 24, "num_heads": 3, "num_classes": 5, "img_size": 32}
ARGUMENTS = {
    # A VisionTransformer with norms of EVA-02's.
    "BEiT-3, map": ("beit3_base_patch16_224", {"global_pool": "map", "reg_tokens": 2}),
    "BEiT-3, GELU": (
        "beit3_base_patch16_224",
        {"act_layer": "quick_gelu", "qkv_bias": False, "init_values": 0.1},
    ),
    "norms of EVA-02": (
        "vit_tiny_patch16_224",
        {"scale_attn_norm": True, "scale_mlp_norm": True},
    ),
    # Its pool has an MLP of another ratio than its blocks.
    "Perception Encoder": (
        "vit_pe_core_gigantic_patch14_448",
        {"img_size": 28, "embed_dim": 48},
    ),
    "pool of another ratio": (
        "vit_pe_core_base_patch16_224",
        {"mlp_ratio": 3.0, "embed_dim": 48},
    ),
    # Its code says itself that the mean has no norm behind it.
    "LingBot, mean": ("vit_small_patch16_lingbot", {"global_pool": "avg"}),
    "rotary, mean": ("vit_small_patch16_rope_224", {"global_pool": "avg"}),
    "Eva, arguments": (
        "eva02_tiny_patch14_224",
        {"img_size": 28, "embed_dim": 48, "class_token": True, "num_reg_tokens": 2}
        | {"no_embed_class": True, "use_fc_norm": False, "qkv_bias": False},
    ),
    "map, class token": ("vit_tiny_patch16_224", {"global_pool": "map"}),
    "map, registers": (
        "vit_base_patch16_siglip_224",
        {"reg_tokens": 3, "no_embed_class": True},
    ),
    "map, prefix": (
        "vit_tiny_patch16_224",
        {"global_pool": "map", "pool_include_prefix": True, "reg_tokens": 2},
    ),
    "map, public registers": ("vit_so150m_patch16_reg4_map_256", {}),
    "mean, prefix": (
        "vit_tiny_patch16_224",
        {"global_pool": "avg", "pool_include_prefix": True, "fc_norm": False},
    ),
    "map of EVA": ("eva02_tiny_patch14_224", {"global_pool": "map", "img_size": 28}),
    "silu": ("vit_giant_patch14_dinov2", {"act_layer": "silu", "img_size": 28}),
    "mlp of So400m": ("vit_so400m_patch14_siglip_224", {"img_size": 28}),
    # Published with QuickGELU, and with GELU by tanh: timm's constructor has neither.
    "tag of CLIP": (
        "vit_base_patch16_clip_224.openai",
        {"num_classes": 512, "global_pool": "avg"},
    ),
    "tag of SigLIP": ("vit_base_patch16_siglip_224.webli", {"num_classes": 0}),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_a_folder_of_a_model_with_arguments(tmp_path, case):
    name, arguments = ARGUMENTS[case]
    _, *expected = saved_by_timm(tmp_path, name, **TINY | arguments)
    agrees(tmp_path, *expected)


@pytest.mark.parametrize("name", TIMM)
def test_timms_folder(tmp_path, name):
    """As timm saves a model for the hub, with the arguments that it was made with."""
    model, images, theirs = saved_by_timm(tmp_path, name, **TIMM[name])
    found = agrees(tmp_path, images, theirs)
    cfg = model.pretrained_cfg
    assert (found.model.config.mean, found.model.config.std) == (
        tuple(cfg["mean"]),
        tuple(cfg["std"]),
    )
    prepared = found.preprocessing
    assert (prepared.crop, prepared.image_size) == (cfg["crop_pct"], images.shape[1])
    assert prepared.interpolation == cfg["interpolation"]
    names = tuple(f"class {i}" for i in range(theirs.shape[1]))
    assert found.class_names == names


# The model that these arguments make of vit_tiny_patch16_224.
MADE = {"depth": 2, "embed_dim": 24, "num_heads": 3, "image_size": 32}


def test_a_model_with_norms_behind_its_branches(tmp_path):
    """Its tensors are those of EVA's other models, and no name here says so."""
    name = "eva02_enormous_patch14_clip_224"
    _, *expected = saved_by_timm(tmp_path, name, **TINY | {"img_size": 28})
    with pytest.raises(InputError, match="architecture is 'eva02_enormous_patch14_cl"):
        imagepiece_jax.load(tmp_path)
    fields = MADE | {"image_size": 28, "mlp_ratio": int(24 * 15360 / 1792) / 24}
    parts = {"post_norm": True, "pool": "token", "final_norm": True, "fc_norm": False}
    config = make.config("eva_giant_patch14_224", arch=parts, **fields)
    agrees(tmp_path / "model.safetensors", *expected, config=config)


POOLS = {
    "avg": {"pool": "mean", "pool_include_prefix": False},
    "token": {"pool": "token"},
    "": {"pool": "none"},
}


@pytest.mark.parametrize("pool", POOLS)
def test_the_pool_of_a_file_is_the_configs(tmp_path, pool):
    arguments = TINY | {"global_pool": pool, "fc_norm": False, "num_classes": 0}
    _, *expected = saved_by_timm(tmp_path, "vit_tiny_patch16_224", **arguments)
    agrees(tmp_path, *expected)
    fields = MADE | {"num_classes": 0} | POOLS[pool]
    config = make.config("vit_tiny_patch16_224", **fields)
    agrees(tmp_path / "model.safetensors", *expected, config=config)


def test_a_file_of_images_that_are_no_squares(tmp_path):
    size = (4 * 16, 16 * 16)
    arguments = TINY | {"img_size": size}
    _, *expected = saved_by_timm(tmp_path, "vit_tiny_patch16_224", **arguments)
    agrees(tmp_path, *expected)
    config = make.config("vit_tiny_patch16_224", **MADE | {"image_size": size})
    agrees(tmp_path / "model.safetensors", *expected, config=config)
