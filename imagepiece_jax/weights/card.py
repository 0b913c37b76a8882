"""The model card of a saved folder: what a model is, and what it was made from."""

import json
import pathlib
import re

import jax

from imagepiece_jax.common.files import read_json
from imagepiece_jax.common.image_size import sides
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.variables import variable_shapes
from imagepiece_jax.weights import hub
from imagepiece_jax.weights.file_names import CONFIG
from imagepiece_jax.weights.timm_config import EPS

CARD = "README.md"
LICENSE = "license"
LICENSES = (LICENSE, "license_name", "license_link")  # fields of a card's header
# Those of timm's models that the hub has an id of; others have a name there.
WITH_ID = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "gemma")
WITH_ID += ("apple-amlr", "apple-ascl", "unknown")
NO_BETTER = "no better"  # of a form that training did not improve


def model_card(name: str, vit: Pretrained, in_timm: bool) -> str:
    """Markdown on a model, its cost, its weights and how to load it.

    name: of its folder
    in_timm: whether timm has such models
    """
    model = vit.model
    size = vit.image_size
    leaves = jax.tree.leaves(variable_shapes(model, size)["params"])
    parameters = sum(leaf.size for leaf in leaves)
    height, width = sides(size)
    task = "image-feature-extraction"
    classes = "none, features alone"
    if model.num_classes:
        task = "image-classification"
        classes = str(model.num_classes)
    header = ""
    rows = ""
    if weights := made_from(vit):
        fields = licenses(vit)
        if hub.has_owner(weights):
            fields["base_model"] = weights
        header = "".join(f"{field}: {value}\n" for field, value in fields.items())
        terms = fields.get("license_name") or fields.get(LICENSE)
        terms = terms or "that of the weights it was made from"
        rows = f"| made from | `{weights}` |\n| license | {terms} |\n"
    about = ""
    if vit.recovery:
        about = _recovery(vit.recovery)
    if in_timm:
        about += _timm(name, model)
    return f"""---
{header}library_name: imagepiece_jax
pipeline_tag: {task}
tags:
- {task}
- vision-transformer
- token-reduction
- jax
---
# {name}

A vision transformer of imagepiece_jax.

| | |
|---|---|
| reduction | {vit.label} |
| images | {height} x {width} pixels, mean {model.mean}, std {model.std} of [0, 1] |
| classes | {classes} |
| parameters | {parameters / 1e6:.1f} million |
| cost | {vit.gmacs:.2f} GMACs an image |
{rows}
```python
import imagepiece_jax

vit = imagepiece_jax.load("{name}")
```
{about}"""


def _timm(name, model):
    """How timm loads the dense part."""
    difference = ""
    eps = model.arch.norm_eps
    if eps < EPS:
        difference = f" timm's norms add {EPS:g} to variances, this model's {eps:g}."
    return f"""
Its dense part in timm, without the reduction:{difference}

```python
model = timm.create_model("local-dir:{name}", pretrained=True)
```
"""


def _recovery(recovery):
    """What came back at each cost."""
    lines = []
    for cost in recovery.costs:
        after = f"{cost.after:.4f}" if cost.numbers else NO_BETTER
        lines.append([cost.form, cost.measure, f"{cost.before:.4f}", after])
    table = markdown_table(["form", "measure", "before", "after"], lines)
    trained = "trained to answer as the dense model does, from images without labels"
    about = f"These forms were {trained}."
    if not all(cost.numbers for cost in recovery.costs):
        about += f" One that got {NO_BETTER} has the dense model's numbers."
    dense = "Its dense form, `vit.with_reduction(None)`, is that model."
    return f"""
{about}
{dense} The license is that of the weights that it was made from.

{table}
"""


def made_from(vit: Pretrained) -> str | None:
    """The weights that a model's were made from, in short; None: they were drawn."""
    if vit.recovery and vit.recovery.costs[0].weights:
        return vit.recovery.costs[0].weights
    source = vit.source
    if source is None:
        return None
    if source.run is None:
        return source.name
    start = source.run.get("init", {}).get("weights")
    return hub.given_name(start) if start else None


def licenses(vit: Pretrained) -> dict[str, str]:
    """`LICENSES` of a model's weights, by the folder that they were read from.

    The folder's own card says it, or else timm's config; {}: neither does.
    """
    source = vit.source
    if source is None or not source.is_folder or source.run is not None:
        return {}
    fields = _header(source.path / CARD)
    if LICENSE in fields:
        return fields
    try:
        config = read_json(source.path / CONFIG)
    except InputError:  # other folders have none
        return {}
    images = config.get("pretrained_cfg")
    found = images.get(LICENSE) if isinstance(images, dict) else None
    if not isinstance(found, str):
        return {}
    if found in WITH_ID:
        return {LICENSE: found}
    if not re.fullmatch(r"[A-Za-z][\w.-]*", found):
        found = json.dumps(found)  # as YAML reads it, too
    return {LICENSE: "other", "license_name": found}


def _header(path):
    """`LICENSES` in the YAML header of a card, each of one line."""
    try:
        text = pathlib.Path(path).read_text("utf-8-sig", errors="replace")
    except OSError:
        return {}
    header = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    if header is None:
        return {}
    fields = {}
    for field in LICENSES:
        if line := re.search(rf"^{field}: *([^\s>|].*?)\s*$", header[1], re.MULTILINE):
            fields[field] = line[1]
    return fields
