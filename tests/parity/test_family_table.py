"""The table of families in docs/models.md against timm's and transformers' classes."""

import pytest

import imagepiece_jax
from imagepiece_jax.weights.transformers_config import MODEL_TYPES

for package in ("torch", "timm", "transformers"):
    pytest.importorskip(package)

import transformers  # noqa: E402

from tests.models import family_table, tiny  # noqa: E402
from tests.parity.record import apart, computed  # noqa: E402
from tools import originals  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, when it saves


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
