"""Vision towers of language models: what transformers gives in front of those.

LLaVA and PaliGemma as transformers saves them, with random weights and a language model
of one layer; float32 with the highest precision of products.
"""

import json

import jax
import numpy as np
import pytest

import imagepiece_jax
from imagepiece_jax.errors import InputError
from imagepiece_jax.weights import towers

for package in ("torch", "transformers"):
    pytest.importorskip(package)

import safetensors.numpy  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

from tests.parity.record import apart  # noqa: E402
from tools import originals  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, when it saves
EPS = 0.03  # far from every default, so that what is not read shows
DEPTH = 4
TEXT = {"hidden_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT |= {"num_key_value_heads": 1, "intermediate_size": 8, "vocab_size": 64}
SQUARE = {"height": originals.SIDE, "width": originals.SIDE}


def llava(vision=None, **fields):
    vision = vision or originals.clip_config(num_hidden_layers=DEPTH)
    vision.layer_norm_eps = EPS
    text = transformers.LlamaConfig(**TEXT)
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=60, **fields
    )
    return transformers.LlavaForConditionalGeneration(config)


def siglip(**fields):
    kind = transformers.SiglipVisionConfig
    return originals.config(kind, num_hidden_layers=DEPTH, **fields)


def paligemma():
    vision = siglip(vision_use_head=False, hidden_act="gelu", layer_norm_eps=EPS)
    config = transformers.PaliGemmaConfig(
        vision_config=vision,
        text_config={"model_type": "gemma", "head_dim": 10} | TEXT,
        projection_dim=TEXT["hidden_size"],
        image_token_index=60,
    )
    return transformers.PaliGemmaForConditionalGeneration(config)


FULL = {"vision_feature_select_strategy": "full"}
MODELS = {
    "llava": llava,
    "llava, another layer": lambda: llava(
        vision_feature_layer=2, projector_hidden_act="gelu_new"
    ),
    "llava, last layer": lambda: llava(vision_feature_layer=-1, **FULL),
    "llava without biases": lambda: llava(multimodal_projector_bias=False),
    "llava, SigLIP": lambda: llava(siglip(), **FULL),
    "paligemma": paligemma,
}


def truth(model):
    """(what the projector reads, what it gives) for images of `originals`."""
    seen = []
    hook = model.model.multi_modal_projector.register_forward_hook(
        lambda module, args, out: seen.extend([args[0], out])
    )
    options = {}
    if hasattr(model.config, "vision_feature_layer"):
        names = ("vision_feature_layer", "vision_feature_select_strategy")
        options = {name: getattr(model.config, name) for name in names}
    images = torch.from_numpy(originals.images()).permute(0, 3, 1, 2)
    with torch.no_grad():
        model.get_image_features(images, **options)
    hook.remove()
    return [tensor.numpy() for tensor in seen]


def save(model, folder, **options):
    model.save_pretrained(folder, **options)
    config = model.config.vision_config
    kind = {
        "clip_vision_model": transformers.CLIPImageProcessor,
        "siglip_vision_model": transformers.SiglipImageProcessor,
    }[config.model_type]
    processor = kind(size=SQUARE, crop_size=SQUARE, do_center_crop=None)
    processor.save_pretrained(folder)
    return processor


def compare(path, expected, **fields):
    vit = imagepiece_jax.load(path, **fields)
    with jax.default_matmul_precision("highest"):
        maps = imagepiece_jax.features(vit, originals.images(), reshape=False)
        tokens = np.asarray(maps.patches)
        if vit.projector.prefix:
            tokens = np.concatenate([maps.prefix, tokens], axis=1)
        projected = np.asarray(jax.jit(vit.projector)(tokens))
    for ours, theirs in zip((tokens, projected), expected, strict=True):
        assert apart(ours, theirs) < 1e-5
    return vit


@pytest.mark.parametrize("name", MODELS)
def test_features_are_those_of_transformers(tmp_path, name):
    model = originals.randomize(MODELS[name]())
    processor = save(model, tmp_path)
    vit = compare(tmp_path, truth(model))
    assert vit.model.mean == pytest.approx(processor.image_mean)
    assert vit.preprocessing.crop == 1.0


# Names that differ between versions, of the file that 5.23 writes.
OLDER = ("vision_tower.", "vision_tower.vision_model.")


def renamed(tensors, version):
    """The tensors of a file as another version has them."""
    if version == "4":
        return {name.replace(*OLDER): value for name, value in tensors.items()}
    new = {}
    for name, value in tensors.items():
        name = name.replace("language_model.model.", "language_model.")
        name = f"model.{name}".replace("model.language_model.lm_head", "lm_head")
        new[name if version == "5" else name.replace(*OLDER)] = value
    return new


@pytest.mark.parametrize("kind", ["llava", "paligemma"])
@pytest.mark.parametrize("version", ["4", "4.52", "5"])
def test_names_of_other_versions(tmp_path, kind, version):
    """Of version 4 in files, of 4.52 and 5 in memory and in some files."""
    model = originals.randomize(MODELS[kind]())
    save(model, tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = renamed(safetensors.numpy.load_file(file), version)
    if version == "5":
        assert tensors.keys() <= model.state_dict().keys()
    safetensors.numpy.save_file(tensors, file, {"format": "pt"})
    compare(tmp_path, truth(model))


@pytest.mark.parametrize("kind", ["llava", "paligemma"])
def test_parts_with_the_language_model_alone_need_not_be_there(tmp_path, kind):
    model = originals.randomize(MODELS[kind]())
    save(model, tmp_path, max_shard_size="8KB")
    places = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    needed = {
        part
        for name, part in places["weight_map"].items()
        if towers.OF_TOWER.match(name)
    }
    others = {*places["weight_map"].values()} - needed
    assert len(needed) > 2 and others
    for part in others:
        (tmp_path / part).unlink()
    compare(tmp_path, truth(model))


@pytest.mark.parametrize("host", ["llava", "paligemma"])
def test_what_a_config_leaves_out_is_as_in_transformers(host):
    ours = towers.HOSTS[host].fields
    theirs = transformers.AutoConfig.for_model(host).vision_config
    assert ours == {field: getattr(theirs, field) for field in ours}
    assert theirs.model_type == towers.HOSTS[host].kinds[0]


def test_processors_of_images_and_text_in_one_file(tmp_path):
    model = originals.randomize(paligemma())
    save(model, tmp_path)
    images = tmp_path / "preprocessor_config.json"
    content = {"image_processor": json.loads(images.read_text())}
    images.unlink()
    with pytest.raises(
        InputError, match="mean cannot be read from the tensors.* std.; place its"
    ):
        imagepiece_jax.load(tmp_path)
    (tmp_path / "processor_config.json").write_text(json.dumps(content))
    compare(tmp_path, truth(model))


def test_a_tower_saved_here_keeps_its_projector(tmp_path):
    model = originals.randomize(MODELS["llava"]())
    save(model, tmp_path / "theirs")
    vit = imagepiece_jax.load(tmp_path / "theirs")
    again = compare(imagepiece_jax.save(tmp_path / "ours", vit), truth(model))
    assert again.model == vit.model
