"""The table of families in docs/models.md, read."""

import re

from imagepiece_jax.models import registry
from tests.markdown import section, tables

TOKENS = "prefix tokens"
HEAD = "the head reads"
SOURCES = "checkpoints of"
# {family: a pattern of timm's names of its members}
MEMBERS = {
    "DeiT": r"deit_(?!.*distilled)",
    "DeiT, distilled": r"deit_.*distilled",
    "DeiT-III": r"deit3_",
    "ViT (AugReg, ORIG and others)": r"vit_.*\.(augreg|orig)",
    "MAE": r".*\.mae",
    "DINO": r".*\.dino$",
    "DINOv2": r".*_dinov2\.",
    "CLIP": r"vit_.*_clip_",
    "SigLIP, SigLIP 2": r".*_siglip_",
    "DINOv3": r".*_dinov3",
    "EVA-02": r"eva02_",
    "Perception Encoder, core": r"vit_pe_core_",
    "Perception Encoder, spatial and lang": r"vit_pe_(spatial|lang)_",
}
POOLS = {
    "class": "token",
    "class and distillation": "token",
    "mean of the patches": "mean",
    "attention pooling": "map",
    "attention pooling of all tokens": "map",
}
# Words on outputs behind the head, and on how two heads make one.
BEHIND = {"no classes", "then CLIP's projection", "mean of two heads"}


def rows():
    """{family: its row}."""
    (table,) = (t for t in tables(section("docs/models.md")) if HEAD in t[0])
    return {row["family"]: row for row in table}


def prefixes(row):
    """The (class tokens, distillation tokens, registers) that a row names."""
    found = set()
    for words in row[TOKENS].split("; "):
        parts = words.split(", ")
        registers = [int(part.split()[0]) for part in parts if "registers" in part]
        known = {"class", "distillation", "none"} | {
            f"{n} registers" for n in registers
        }
        assert {*parts} <= known, parts
        found.add(("class" in parts, "distillation" in parts, sum(registers)))
    return found


def reads(cell):
    """(the pools that a cell names, whether there are no classes)."""
    parts = {part.removeprefix("or ") for part in cell.split(", ")}
    named = parts - BEHIND
    return {POOLS[part] for part in named}, "no classes" in parts


def of_timm(row):
    """`reads` of timm's members."""
    return reads(row[HEAD].partition("; ")[0])


def elsewhere(row):
    """{who: the pools} where others read something else than timm."""
    parts = row[HEAD].split("; ")[1:]
    return {who: reads(cell)[0] for who, cell in (part.split(": ") for part in parts)}


def members(family):
    """Full names of timm's members with weights."""
    names = []
    for base, row in registry.public_models().items():
        names += [f"{base}.{tag}" for tag in row["weights"] if tag]
    return [name for name in names if re.match(MEMBERS[family], name)]
