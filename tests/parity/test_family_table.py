"""The table of families in docs/models.md against timm's and transformers' classes."""

import pytest

import imagepiece_jax
from imagepiece_jax.models import registry
from imagepiece_jax.weights.transformers_config import MODEL_TYPES

for package in ("torch", "timm", "transformers"):
    pytest.importorskip(package)

import timm  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

from tests.models import family_table, tiny  # noqa: E402
from tests.models.family_table import MEMBERS  # noqa: E402
from tests.parity.record import apart, computed  # noqa: E402
from tools import originals  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, when it saves
POOLS = {"token": "token", "avg": "mean", "map": "map"}


def representatives(family):
    """The smallest member of each kind, and the row's own example."""
    kinds = {}
    for name in family_table.members(family):
        facts = registry.fields_of(name)
        arch = facts["arch"]
        size = facts["embed_dim"] * facts["depth"]
        kind = arch.prefix, arch.pool, facts["num_classes"] == 0
        kinds[kind] = min(kinds.get(kind, (size, name)), (size, name))
    return {name for _, name in kinds.values()}


def tokens(model):
    dist = getattr(model, "dist_token", None) is not None
    registers = getattr(model, "reg_token", None)
    count = 0 if registers is None else registers.shape[1]
    return model.cls_token is not None, dist, count


@pytest.mark.parametrize("family", MEMBERS)
def test_cells_are_those_of_timms_models(family):
    row = family_table.rows()[family]
    with torch.device("meta"):
        models = [timm.create_model(name) for name in representatives(family)]
        example = timm.create_model(row["such as"].strip("`"))
    assert {tokens(model) for model in models} == family_table.prefixes(row)
    pools, headless = family_table.of_timm(row)
    assert {POOLS[model.global_pool] for model in models} == pools
    assert headless == all(model.num_classes == 0 for model in models)
    assert tokens(example) in family_table.prefixes(row)
    assert POOLS[example.global_pool] in pools
    heads = hasattr(example, "head_dist")
    assert heads == ("class and distillation" in row[family_table.HEAD])


# {family: its model types in transformers}. DINO's are of type "vit".
TYPES = {
    "DeiT": ["vit"],
    "DeiT, distilled": ["deit"],
    "ViT (AugReg, ORIG and others)": ["vit"],
    "DINO": ["vit"],
    "DINOv2": ["dinov2", "dinov2_with_registers"],
    "CLIP": ["clip_vision_model"],
    "SigLIP, SigLIP 2": ["siglip_vision_model"],
    "DINOv3": ["dinov3_vit"],
}


def test_checkpoints_of_transformers_are_those_of_its_model_types():
    rows = family_table.rows().items()
    found = {name for name, row in rows if "transformers" in row["checkpoints of"]}
    assert found == {*TYPES}
    assert set().union(*TYPES.values()) == {*MODEL_TYPES}


@pytest.mark.parametrize("family", TYPES)
def test_cells_are_those_of_transformers(family):
    row = family_table.rows()[family]
    own = family_table.elsewhere(row).get("in transformers and DINOv3")
    for kind in TYPES[family]:
        config = transformers.AutoConfig.for_model(kind).to_dict()
        model = MODEL_TYPES[kind]
        arch = model.arch({field: config.get(field) for field in model.fields})
        assert arch.pool in (own or family_table.of_timm(row)[0])
        registers = arch.registers or ("4 registers" in row["prefix tokens"]) * 4
        if kind == "dinov2":
            registers = 0
        prefix = arch.class_token, arch.dist_token, registers
        assert prefix in family_table.prefixes(row)


def test_dinov3_reads_the_mean_in_timm_and_the_class_token_in_transformers(tmp_path):
    """Its pooler's output, which its folder gives; and what the table says of it."""
    row = family_table.rows()["DINOv3"]
    assert family_table.of_timm(row) == ({"mean"}, True)
    assert family_table.elsewhere(row) == {"in transformers and DINOv3": {"token"}}
    made = originals.config(transformers.DINOv3ViTConfig)
    model = originals.randomize(transformers.DINOv3ViTModel(made))
    theirs = originals.run(lambda x: model(x).last_hidden_state[:, 0])
    model.save_pretrained(tmp_path)
    square = {"height": originals.SIDE, "width": originals.SIDE}
    transformers.DINOv3ViTImageProcessor(size=square).save_pretrained(tmp_path)
    vit = imagepiece_jax.load(tmp_path)
    ours = computed(*tiny.pair(vit), originals.images()).logits
    assert apart(ours, theirs) < 1e-5
