"""ToMe's own table: accuracy and speed of a model that was never trained to merge.

Public weights, r from 0 (the dense model) up. ToMe's authors print such figures for
several models; those of the same shape as the weights given stand beside.
"""

from imagepiece_jax.evaluate.statistics import (
    format_difference,
    format_estimate,
    paired_difference,
)
from imagepiece_jax.experiments import published, render

RATES = (0, 4, 8, 10, 13, 16, 20, 25)


def tome_offtheshelf(context):
    """Measure accuracy and speed at every r, and write tome-offtheshelf.md."""
    pretrained, lines, curve = context.pretrained, [], []
    base = context.evaluate(pretrained, reduction(0))
    for r in RATES:
        result = context.evaluate(pretrained, reduction(r))
        speed = context.speed(pretrained, reduction(r))
        change = paired_difference(result.right, base.right)
        curve.append((result["gmacs"], result.accuracy))
        lines.append(
            [
                r,
                result["tokens"],
                f"{result['gmacs']:.3f}",
                format_estimate(result.accuracy),
                format_difference(change) if r else "",
                render.speed_cell(speed),
            ]
        )
    head = ["r", render.TOKENS_LEFT, "GMACs", "acc1, %", "to r = 0, points (paired)"]
    text = render.table([*head, "x dense, measured"], lines)
    notes = [render.images_note(context), render.models_note(context)]
    note = " ".join(filter(None, [*notes, render.speed_note(context)]))
    path = context.out / "tome-offtheshelf.png"
    render.curves(path, "GMACs an image", "accuracy, %", {"ToMe": curve})
    title = "ToMe without training, by r"
    render.page(context, "tome-offtheshelf", title, text, _printed(pretrained), note)


def reduction(r: int) -> dict:
    """ToMe merging r tokens a block, with proportional attention."""
    return {"name": "tome", "r": r}


def _printed(pretrained):
    """Table of what ToMe's authors print for models of this shape."""
    model = pretrained.model(reduction(0))
    shape = (model.embed_dim, len(model.plan), model.patch_size, pretrained.image_size)
    rows = [row for row in published.TOME if row[2] == shape]
    if not rows:
        return ""
    head = ["ImageNet-1k, published, V100", "kind", "r", "acc1, dense", "img/s, dense"]
    lines = [[name, kind, *figures] for name, kind, _, *figures in rows]
    return render.table([*head, "acc1, %", "img/s"], lines)
