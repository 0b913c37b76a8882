"""ToMe's headline: how fast does a model get that was never trained to merge?

Public weights, r from 0 (the dense model) up. ToMe's authors print such figures for
several models; those of the same shape as the weights given stand beside.
"""

from imagepiece_jax.evaluate import statistics
from imagepiece_jax.experiments import published, render
from imagepiece_jax.experiments.rows import form

RATES = (0, 4, 8, 10, 13, 16, 20, 25)


def run(lab):
    """Measure accuracy and speed at every r, and write tome-offtheshelf.md."""
    subject, lines, curve = lab.one(), [], []
    base = lab.answers(subject, setting(0))
    for r in RATES:
        answers = lab.answers(subject, setting(r))
        speed = lab.speed(subject, setting(r))
        change = statistics.paired_difference(answers.right, base.right)
        curve.append((answers["gmacs"], answers.accuracy))
        lines.append(
            [
                r,
                answers["tokens"],
                f"{answers['gmacs']:.3f}",
                statistics.format_estimate(answers.accuracy),
                statistics.format_difference(change) if r else "",
                render.speed_cell(speed),
            ]
        )
    head = ["r", render.TOKENS_LEFT, "GMACs", "acc1, %", "to r = 0, points (paired)"]
    title = "ToMe without training, by r"
    note = f"{render.images_note(lab)} {form(lab)} {render.speed_note(lab)}"
    path = lab.out / "tome-offtheshelf.png"
    render.curves(path, "GMACs an image", "accuracy, %", {"ToMe": curve})
    measured = render.table([*head, "x dense, measured"], lines)
    render.page(lab, "tome-offtheshelf", title, measured, printed(subject), note)


def setting(r):
    """ToMe merging r tokens a block, with proportional attention."""
    return {"name": "tome", "r": r}


def printed(subject):
    """Table of what ToMe's authors print for models of this shape."""
    model = subject.model(setting(0))
    shape = (model.embed_dim, len(model.plan), model.patch_size, subject.image_size)
    rows = [row for row in published.TOME if row[2] == shape]
    if not rows:
        return ""
    head = ["ImageNet-1k, published, V100", "kind", "r", "acc1, dense", "img/s, dense"]
    lines = [[name, kind, *figures] for name, kind, _, *figures in rows]
    return render.table([*head, "acc1, %", "img/s"], lines)
