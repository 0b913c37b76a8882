"""The README.md of a saved model, as the Hugging Face hub shows it."""

import jax

from imagepiece_jax.common.image_size import sides
from imagepiece_jax.models import summary
from imagepiece_jax.models.timm_config import EPS
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.reduction import settings


def model_card(name: str, model: ViT, in_timm: bool) -> str:
    """Markdown on what a model is, what it costs and how to load it.

    name: of its folder; in_timm: whether timm has such models.
    """
    size = model.preprocessing.image_size
    leaves = jax.tree.leaves(summary.shapes(model, size)["params"])
    parameters = sum(leaf.size for leaf in leaves)
    height, width = sides(size)
    macs = summary.model_macs(model, size) / 1e9
    reduction = settings.label(settings.changed(model.reduction))
    task = "image-classification" if model.num_classes else "image-feature-extraction"
    classes = str(model.num_classes) if model.num_classes else "none, features alone"
    eps = model.arch.norm_eps
    other = f" timm's norms add {EPS:g} to variances, this model's {eps:g}."
    timm = f"""
Its dense part in timm, without the reduction:{other if eps < EPS else ""}

```python
model = timm.create_model("local-dir:{name}", pretrained=True)
```
"""
    return f"""---
library_name: imagepiece_jax
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
| reduction | {reduction} |
| images | {height} x {width} pixels, mean {model.mean}, std {model.std} of [0, 1] |
| classes | {classes} |
| parameters | {parameters / 1e6:.1f} million |
| cost | {macs:.2f} GMACs an image |

```python
import imagepiece_jax

model, variables = imagepiece_jax.load("{name}")
```
{timm if in_timm else ""}"""
