"""Which of ImagePiece's parts matter? Its stem, its schedule, and each of its switches.

Published is the stem alone: 79.81 without it, 80.22 with it (DeiT-S). Each other row
changes one field of the default; what it costs changes with some of them.
"""

from imagepiece_jax.evaluate import statistics
from imagepiece_jax.experiments import render, table1
from imagepiece_jax.experiments.rows import DENSE, Row, present

# field -> values beside the default's
SWITCHES = {
    "schedule": ("A",),
    "candidate_ratio": (0.2, 0.4, 0.5),
    "merge_ratio": (0.04, 0.12),
    "prop_attn": (True,),
    "merge_base": ("candidates",),
    "order": ("ascending",),
    "parity": (1,),
    "metric": ("query", "value", "token"),
    "size_weighting": (False,),
}
DEFAULT = table1.IMAGEPIECE_PATCH


def switched(stem):
    """A Row for each value of each switch, with this stem."""
    end = "" if stem == "patch" else ", conv stem"
    return tuple(
        Row(f"{field}={value}{end}", {"name": "imagepiece", field: value}, stem)
        for field, values in SWITCHES.items()
        for value in values
    )


STEMS = (DENSE, table1.DENSE_CONV, table1.IMAGEPIECE, DEFAULT)
ROWS = (*STEMS, *switched("patch"), *switched("conv"))


def run(lab):
    """Measure every row that there is a model for, and write ablation.md.

    What is trained here is the stem's part and the schedule's, not every switch.
    """
    rows = ROWS if lab.small is None else (*STEMS, switched("patch")[0])
    present(
        lab,
        "ablation",
        "local coherence bias and switches",
        rows,
        matched=False,
        stems=("patch", "conv"),
        more=(to_default,),
    )


def to_default(found):
    """Table of what each switch changes of the default, on the same images."""
    lines = []
    for default in (DEFAULT, table1.IMAGEPIECE):
        base = found.get(default.name)
        for name, measured in found.items():
            if base is None or measured in (None, base):
                continue
            if (
                measured.row.reduction["name"] != "imagepiece"
                or measured.row.stem != default.stem
            ):
                continue
            rights = [each.right for each in measured.answers]
            change = statistics.paired_difference(
                rights, [a.right for a in base.answers]
            )
            costs = f"{measured.facts['gmacs'] - base.facts['gmacs']:+.3f}"
            lines.append([name, statistics.format_difference(change), costs])
    if not lines:
        return ""
    return render.table(["changed", "to the default, points (paired)", "GMACs"], lines)
