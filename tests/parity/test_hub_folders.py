"""Folders written by transformers and timm load by their path alone.

The truth is their models, transformers' pipeline, and timm's transforms and readers.

Models of tools/originals, reduced in width and depth, are saved by their own package
with its image processor. Float32, with products in the highest precision.
"""

import functools

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from timm.models import _hub, eva

import imagepiece_jax
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.config import PROBLEM_TYPES, PROJECTION
from imagepiece_jax.weights import timm_config, transformers_config
from tests.helpers import named_models
from tests.helpers.parity_record import distance, noise, run_jax, run_torch
from tools import originals
from tools.originals import CLASSES, config

pytestmark = pytest.mark.filterwarnings("ignore")  # from transformers' saving
LABELS = {i: f"class {i}" for i in range(CLASSES)}
EPS = 0.03  # far from every default, so that an unread field shows
SQUARE = {"height": originals.SIDE, "width": originals.SIDE}
KINDS = [*transformers_config.MODEL_TYPES, *transformers_config.VISION_TYPES]
# Fields of every configuration class: the head, and the meaning of its logits.
READ = {"architectures", "model_type", "id2label", "problem_type", "vision_config"}
READ |= {"vision_use_head", *transformers_config.UNQUANTIZED_FIELDS}
# {field that changes no output in evaluation: a value other than the default}.
IDLE = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3}
IDLE |= {"attention_dropout": 0.3, "drop_path_rate": 0.3}
# training: positions, masks and starting values
IDLE |= {"pos_embed_shift": 0.3, "pos_embed_jitter": 1.5, "pos_embed_rescale": 1.5}
IDLE |= {"use_mask_token": False, "initializer_range": 0.3, "initializer_factor": 2.0}
IDLE |= {"layerscale_value": 0.3}
# a decoder of masked images, a pooler with tanh, a backbone's feature maps
IDLE |= {"encoder_stride": 8, "pooler_act": "relu", "pooler_output_size": 8}
IDLE |= {"apply_layernorm": False, "reshape_hidden_states": False}
# the text tower, which is not read; the way of computing
IDLE |= {"logit_scale_init_value": 1.0, "chunk_size_feed_forward": 3}
IDLE |= {"output_hidden_states": True}
# Other fields that change no output, without test values: names, tensors' shapes, and
# forms of outputs.
ALSO_IDLE = {"projection_dim", "label2id", "_name_or_path", "transformers_version"}
ALSO_IDLE |= {"dtype", "return_dict", "output_attentions", "is_encoder_decoder"}
ALSO_IDLE |= {"stage_names", "out_features", "out_indices", "text_config"}
ALSO_IDLE |= {"tie_word_embeddings"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_of_transformers_is_known(kind):
    """A new field of an installed library fails, so that somebody looks at it."""
    theirs = {*transformers.AutoConfig.for_model(kind).to_dict()}
    known = READ | {*IDLE} | ALSO_IDLE
    if model := transformers_config.MODEL_TYPES.get(kind):
        known |= {*model.defaults, *model.fixed_fields}
    assert theirs <= known, theirs - known


def clip():
    return transformers.CLIPConfig(
        text_config=originals.TEXT,
        vision_config=originals.clip_config(layer_norm_eps=EPS).to_dict(),
        projection_dim=CLASSES,
    )


def image_embedding(model, x):
    return model.visual_projection(model.vision_model(x).pooler_output)


def logits(model, x):
    return model(x).logits


def pooled(model, x):
    return model(x).pooler_output


def siglip_embedding(model, x):
    return model.vision_model(x).pooler_output


def make_model(name, **fields):
    """A transformers model with idle fields far from their defaults."""
    kind = getattr(transformers, name)
    fields_of_kind = kind.config_class().to_dict()
    idle = {field: value for field, value in IDLE.items() if field in fields_of_kind}
    model_config = config(kind.config_class, **idle | fields)
    assert {field: getattr(model_config, field) for field in idle} == idle
    return kind(model_config)


FIRST = originals.first_token
MULTI = {"id2label": LABELS, "problem_type": "multi_label_classification"}
GATED = {"num_register_tokens": 2, "use_gated_mlp": True, "hidden_act": "silu"}
# (fields of an image processor, their (crop, mode, filter))
LINEAR = {}, (1.0, "squash", "bilinear")
CUBIC = {}, (1.0, "squash", "bicubic")
RESIZED = {"size": {"height": 20, "width": 20}}, (0.8, "squash", "bicubic")
CROPPED = {"size": {"shortest_edge": 20}}, (0.8, "center", "bicubic")
BY_LINEAR = CROPPED[0] | {"resample": 2}, (0.8, "center", "bilinear")
CLASSIFIER = "ForImageClassification"
of = functools.partial(functools.partial, make_model)
VIT = of(f"ViT{CLASSIFIER}", id2label=LABELS, hidden_act="gelu_new", qkv_bias=False)
DEIT = of(f"DeiT{CLASSIFIER}WithTeacher", id2label=LABELS, layer_norm_eps=EPS)
DINOV2 = of("Dinov2Model", use_swiglu_ffn=True, layer_norm_eps=EPS)
REGISTERS = "Dinov2WithRegistersModel"
DINOV3 = "DINOv3ViTModel"
ONE_BIAS = of(DINOV3, query_bias=False, value_bias=False)
ALL_BIASES = of(DINOV3, key_bias=True, num_register_tokens=0)
SIGLIP = functools.partial(transformers.SiglipModel, originals.siglip_config())
SIGLIP_HEAD = functools.partial(
    transformers.SiglipForImageClassification, originals.siglip_config(**MULTI)
)
# {name: (model, outputs, image processor, ..)}
MODELS = {
    "vit": (VIT, logits, "ViT", *LINEAR),
    "deit": (DEIT, logits, "DeiT", *RESIZED),
    "vit, features": (of("ViTModel"), FIRST, "ViT", *LINEAR),
    "deit, features": (of("DeiTModel"), FIRST, "DeiT", *CUBIC),
    # This head reads the class token alone.
    "deit, head": (of(f"DeiT{CLASSIFIER}", id2label=LABELS), logits, "DeiT", *CUBIC),
    "dinov2": (DINOV2, pooled, "Bit", *CROPPED),
    "registers": (of(REGISTERS, hidden_act="quick_gelu"), pooled, "Bit", *BY_LINEAR),
    "no registers": (of(REGISTERS, num_register_tokens=0), pooled, "Bit", *CROPPED),
    "clip": (lambda: transformers.CLIPModel(clip()), image_embedding, "CLIP", *CROPPED),
    "clip_vision": (of("CLIPVisionModel"), pooled, "CLIP", *CROPPED),
    "dinov3": (of(DINOV3, rope_theta=50.0, **GATED), pooled, "DINOv3ViT", *LINEAR),
    "dinov3, one bias": (ONE_BIAS, pooled, "DINOv3ViT", *LINEAR),
    "dinov3, bias": (ALL_BIASES, pooled, "DINOv3ViT", *LINEAR),
    "siglip": (SIGLIP, siglip_embedding, "Siglip", *CUBIC),
    "siglip_vision": (of("SiglipVisionModel"), pooled, "Siglip", *CUBIC),
    "siglip, head": (SIGLIP_HEAD, logits, "Siglip", *CUBIC),
}


def save_model(name, path):
    """Save a model of MODELS and its processor: (model, outputs, processor)."""
    make, forward, kind, fields, _ = MODELS[name]
    model = originals.randomize(make())
    model.save_pretrained(path)
    kind = getattr(transformers, f"{kind}ImageProcessor")
    processor = kind(**{"size": SQUARE, "crop_size": SQUARE} | fields)
    processor.save_pretrained(path)
    return model, forward, processor


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_of_transformers_loads(tmp_path, name):
    model, forward, processor = save_model(name, tmp_path)
    theirs = originals.run(lambda x: forward(model, x))
    vit = imagepiece_jax.load(tmp_path)
    ours = run_jax(vit, originals.images()).logits
    assert distance(ours, theirs) < 1e-5
    assert vit.config.mean == pytest.approx(processor.image_mean)
    assert vit.config.std == pytest.approx(processor.image_std)
    crop, mode, interpolation = MODELS[name][-1]
    images = {"crop": crop, "crop_mode": mode, "interpolation": interpolation}
    expected = Preprocessing(originals.SIDE, rule="transformers", **images)
    assert vit.preprocessing == expected
    labels = name in ("vit", "deit", "deit, head", "siglip, head")
    problem_type = model.config.problem_type or PROBLEM_TYPES[0]
    if name == "clip":
        problem_type = PROJECTION
    assert vit.config.problem_type == problem_type
    assert vit.class_names == (tuple(LABELS.values()) if labels else None)


@pytest.mark.parametrize("kind", transformers_config.MODEL_TYPES)
def test_a_configs_missing_fields_have_transformers_defaults(kind):
    ours = transformers_config.MODEL_TYPES[kind].defaults
    theirs = transformers.AutoConfig.for_model(kind).to_dict()
    assert ours == {field: theirs[field] for field in ours}


def save_timm_model(path, name, **arguments):
    """Save a random timm model for the hub: (model, images, logits)."""
    model = originals.randomize(timm.create_model(name, **arguments))
    images = noise(2, *model.patch_embed.img_size, 3)
    theirs = run_torch(model, images).numpy()
    labels = [f"class {i}" for i in range(model.num_classes)]
    _hub.save_for_hf(model, path, {"label_names": labels}, safe_serialization=True)
    return model, images, theirs


WHOLE = {  # architectures with their own sizes
    "test_vit.r160_in1k": {},
    "test_vit2.r160_in1k": {"num_classes": 3},
    "test_vit3.r160_in1k": {"img_size": 64, "act_layer": "quick_gelu"},
}
# Sizes that compile in a second.
TINY = {"depth": 2, "embed_dim": 24, "num_heads": 3, "num_classes": 5, "img_size": 32}
IDLE_TIMM = {name: 0.3 for name in timm_config.IDLE_ARGUMENTS if name.endswith("_rate")}
IDLE_TIMM |= {"weight_init": "jax", "fix_init": True, "qk_norm": False}
# None is the class's GELU and norm, not the architecture's.
IDLE_TIMM |= {"act_layer": None, "norm_layer": None}
PLAIN = "vit_tiny_patch16_224"
BEIT3 = "beit3_base_patch16_224"
EVA02 = "eva02_tiny_patch14_224"
PARTS = dict(class_token=True, num_reg_tokens=2, no_embed_class=True, use_fc_norm=False)
ARGUMENTS = [
    (PLAIN, IDLE_TIMM),
    ("vit_base_patch16_clip_224", IDLE_TIMM),
    # A VisionTransformer with EVA-02's norms.
    (BEIT3, dict(global_pool="map", reg_tokens=2)),
    (BEIT3, dict(act_layer="quick_gelu", qkv_bias=False, init_values=0.1)),
    (PLAIN, dict(scale_attn_norm=True, scale_mlp_norm=True)),
    # Their pools' MLPs have another ratio than their blocks'.
    ("vit_pe_core_gigantic_patch14_448", dict(img_size=28, embed_dim=48)),
    ("vit_pe_core_base_patch16_224", dict(mlp_ratio=3.0, embed_dim=48)),
    # In their code no norm follows the mean.
    ("vit_small_patch16_lingbot", dict(global_pool="avg")),
    ("vit_small_patch16_rope_224", dict(global_pool="avg")),
    (EVA02, PARTS | dict(img_size=28, embed_dim=48, qkv_bias=False)),
    (PLAIN, dict(global_pool="map")),
    ("vit_base_patch16_siglip_224", dict(reg_tokens=3, no_embed_class=True)),
    (PLAIN, dict(global_pool="map", pool_include_prefix=True, reg_tokens=2)),
    ("vit_so150m_patch16_reg4_map_256", {}),
    (PLAIN, dict(global_pool="avg", pool_include_prefix=True, fc_norm=False)),
    (EVA02, dict(global_pool="map", img_size=28)),
    ("vit_giant_patch14_dinov2", dict(act_layer="silu", img_size=28)),
    ("vit_so400m_patch14_siglip_224", dict(img_size=28)),
    # Published with QuickGELU and tanh GELU, which timm's constructor lacks.
    ("vit_base_patch16_clip_224.openai", dict(num_classes=512, global_pool="avg")),
    ("vit_base_patch16_siglip_224.webli", dict(num_classes=0)),
    (PLAIN, dict(img_size=(64, 256))),
]
for pool in ("avg", "token", ""):
    ARGUMENTS.append((PLAIN, dict(global_pool=pool, fc_norm=False, num_classes=0)))


TIMM = [*WHOLE.items(), *((name, TINY | changed) for name, changed in ARGUMENTS)]


@pytest.mark.parametrize("name, arguments", TIMM)
def test_a_timm_folder_loads(tmp_path, name, arguments):
    model, images, theirs = save_timm_model(tmp_path, name, **arguments)
    vit = imagepiece_jax.load(tmp_path)
    assert distance(run_jax(vit, images).logits, theirs) < 1e-5
    cfg = model.pretrained_cfg
    assert (vit.config.mean, vit.config.std) == (tuple(cfg["mean"]), tuple(cfg["std"]))
    assert vit.preprocessing.crop == cfg["crop_pct"]
    assert vit.preprocessing.interpolation == cfg["interpolation"]
    names = tuple(f"class {i}" for i in range(model.num_classes))
    assert (vit.class_names or ()) == names


def test_a_model_with_post_norms_loads_by_a_config(tmp_path):
    """Its tensors are like other EVA models', and its name is unknown."""
    name = "eva02_enormous_patch14_clip_224"
    _, images, theirs = save_timm_model(tmp_path, name, **TINY | {"img_size": 28})
    with pytest.raises(InputError, match="architecture is 'eva02_enormous_patch14_cl"):
        imagepiece_jax.load(tmp_path)
    fields = {"depth": 2, "embed_dim": 24, "num_heads": 3, "image_size": 28}
    fields["mlp_ratio"] = int(24 * 15360 / 1792) / 24
    parts = {"post_norm": True, "pool": "token", "final_norm": True, "fc_norm": False}
    config = named_models.config("eva_giant_patch14_224", arch=parts, **fields)
    vit = imagepiece_jax.load(tmp_path / "model.safetensors", config=config)
    assert distance(run_jax(vit, images).logits, theirs) < 1e-5


def picture(*shape):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    return Image.fromarray(pixels)


def prepare_image(vit, image):
    pixels = vit.preprocessing(np.asarray(image))[None]
    return imagepiece_jax.normalize(pixels, vit.config.mean, vit.config.std)


def pipeline_scores(folder, image, **fields):
    pipe = transformers.pipeline("image-classification", model=str(folder), **fields)
    by_name = {row["label"]: row["score"] for row in pipe(image)}
    return [by_name[name] for name in LABELS.values()]


@pytest.mark.parametrize("architectures", [["ViTModel"], None])
@pytest.mark.parametrize("problem_type", PROBLEM_TYPES[:2])
def test_a_head_has_its_labels_for_any_architectures_field(
    tmp_path, architectures, problem_type
):
    """transformers names a classifier only when it saves the model itself."""
    fields = {"problem_type": problem_type, "architectures": architectures}
    fields = config(transformers.ViTConfig, id2label=LABELS, **fields)
    model = originals.randomize(transformers.ViTForImageClassification(fields))
    processor = transformers.ViTImageProcessor(size=SQUARE)
    model.config.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    image = picture(16, 16)
    theirs = pipeline_scores(tmp_path, image, image_processor=processor)
    vit = imagepiece_jax.load(tmp_path)
    logits = run_jax(vit, prepare_image(vit, image)).logits
    assert vit.class_names == (*LABELS.values(),)
    probabilities = vit.config.head.probabilities(logits)
    np.testing.assert_allclose(probabilities[0], theirs, atol=1e-3)
    torch.save(model.vit.state_dict(), tmp_path / "pytorch_model.bin")
    vit = imagepiece_jax.load(tmp_path)
    assert (vit.config.num_classes, vit.class_names) == (0, None)


@pytest.mark.parametrize("problem_type", [None, *PROBLEM_TYPES[1:3]])
def test_the_head_of_a_timm_wrapper(tmp_path, problem_type):
    images = timm.get_pretrained_cfg(PLAIN).to_dict()
    images = {k: v for k, v in images.items() if v is not None}
    images["input_size"] = [3, 32, 32]
    fields = {"architecture": PLAIN, "pretrained_cfg": images}
    fields["model_args"] = {k: v for k, v in TINY.items() if k != "num_classes"}
    fields |= {"id2label": LABELS, "problem_type": problem_type}
    kind = transformers.TimmWrapperForImageClassification
    model = kind(transformers.TimmWrapperConfig(**fields))
    originals.randomize(model).save_pretrained(tmp_path)
    image = picture(50, 40)
    theirs = pipeline_scores(tmp_path, image)
    vit = imagepiece_jax.load(tmp_path)
    logits = run_jax(vit, prepare_image(vit, image)).logits
    outputs = logits
    if problem_type != "regression":
        outputs = vit.config.head.probabilities(logits)
    np.testing.assert_allclose(outputs[0], theirs, rtol=1e-3, atol=1e-3)


FLEXIBLE = [(PLAIN, {"dynamic_img_size": True}), ("vit_small_patch16_dinov3", {})]


@pytest.mark.parametrize("name, arguments", FLEXIBLE)
def test_images_have_input_size_and_positions_img_size(tmp_path, name, arguments):
    size = {"img_size": 64}
    model = originals.randomize(timm.create_model(name, **TINY | size | arguments))
    data = {"input_size": (3, 96, 96)}
    _hub.save_for_hf(model, tmp_path, safe_serialization=True, data_config=data)
    timm_model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(timm_model))
    image = picture(120, 150)
    with torch.no_grad():
        theirs = timm_model(transform(image)[None])
    vit = imagepiece_jax.load(tmp_path)
    assert (vit.image_size, vit.origin.image_size) == (96, 64)
    assert distance(run_jax(vit, prepare_image(vit, image)).logits, theirs) < 1e-5
    assert imagepiece_jax.load(tmp_path, image_size=32).image_size == 32


def test_eva02s_pretrained_file(tmp_path):
    """Its last norm is the pooled vector's, like in timm's reader."""
    name = "eva02_tiny_patch14_224.mim_in22k"
    size = {"img_size": 28, "embed_dim": 48, "num_heads": 4, "num_classes": 0}
    model = originals.randomize(timm.create_model(name, **TINY | size))
    renamed = {"mlp.fc1_g": "mlp.w1", "mlp.fc1_x": "mlp.w2", "mlp.fc2": "mlp.w3"}
    file = {"mask_token": torch.ones(1, 1, 48)}
    for tensor_name, tensor in model.state_dict().items():
        for timm_part, authors_part in (renamed | {"fc_norm": "norm"}).items():
            tensor_name = tensor_name.replace(timm_part, authors_part)
        file[tensor_name] = tensor
    file |= {"lm_head.weight": torch.ones(9, 48), "lm_head.bias": torch.ones(9)}
    model.load_state_dict(eva.checkpoint_filter_fn(dict(file), model))
    torch.save({"model": file}, tmp_path / "w.pt")
    hidden = model.blocks[0].mlp.fc2.in_features
    size = {"embed_dim": 48, "depth": 2, "num_heads": 4, "mlp_ratio": hidden / 48}
    ours = named_models.config(name, image_size=28, **size)
    vit = imagepiece_jax.load(tmp_path / "w.pt", config=ours)
    images = noise(2, 28, 28, 3)
    assert distance(run_jax(vit, images).pooled, run_torch(model, images)) < 1e-5
