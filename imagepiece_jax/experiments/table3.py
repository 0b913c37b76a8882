"""Table 3: with how few tokens does each method keep its accuracy?

The published rows, and a search over one checkpoint: the strongest reduction of each
method that measures within some points of the dense model.
"""

import functools

from imagepiece_jax.evaluate import statistics
from imagepiece_jax.experiments import match_cost, published, render, table1
from imagepiece_jax.experiments.rows import DENSE, Row, present
from imagepiece_jax.experiments.table2 import TOME
from imagepiece_jax.models import registry

FAST = {"name": "imagepiece", "keep_rate": 0.6}
ROWS = (
    DENSE,
    table1.DYNAMICVIT,
    table1.EVIT,
    TOME,
    Row("ImagePiece, keep .6", FAST, stem="conv"),
    Row("ImagePiece, keep .6, patch stem", FAST),
)
POINTS = 2.0  # of accuracy that the search may lose
STEPS = 5  # bisections: a knob of a hundred positions to about three of them


def run(lab):
    """Measure the rows that there are models for, search, and write table3.md."""
    more = (printed_tokens, functools.partial(_searched, lab))
    present(lab, "table3", "tokens left at similar accuracy", ROWS, more=more)


def printed_tokens(_):
    """Table of the published token counts beside those of the plans, of DeiT-S."""
    lines = []
    for name, tokens in published.OUTPUT_TOKENS.items():
        row = next(row for row in ROWS if row.name == name)
        lines.append([name, tokens, plan_tokens(row)])
    head = ["DeiT-S", f"tokens ({published.LABEL})", "tokens of our plan"]
    return render.table(head, lines)


def plan_tokens(row, size="deit_s"):
    """Tokens after the last block, class token included."""
    model = registry.create_model(size, stem=row.stem, reduction=row.reduction)
    return model.plan[-1].mlp_tokens


def fewest(lab, subject, reduction):
    """(reduction, its Answers): the least cost within POINTS of dense, or None.

    Bisection over the method's knob, which takes accuracy to fall along it.
    """
    depth = len(subject.model().plan)
    base = lab.answers(subject, DENSE.reduction)
    ordered = match_cost.priced(subject.gmacs, match_cost.settings(reduction, depth))
    best, low, high = None, 0, len(ordered) - 1
    for _ in range(STEPS):
        if low > high:
            break
        middle = (low + high) // 2
        setting = ordered[middle][1]
        answers = lab.answers(subject, setting)
        loss = -statistics.paired_difference(answers.right, base.right).value
        if loss <= POINTS:
            best, low = (setting, answers), middle + 1
        else:
            high = middle - 1
    return best


def _searched(lab, found):
    """Table of what the search finds for each method, where there is one checkpoint."""
    if lab.subject is None or found[DENSE.name] is None:
        return ""
    subject, lines = lab.one(), []
    base = lab.answers(subject, DENSE.reduction)
    for row in (table1.EVIT, TOME, table1.IMAGEPIECE_PATCH):
        best = fewest(lab, subject, row.reduction)
        if best is None:
            lines.append([row.name, "none found"])
            continue
        setting, answers = best
        lines.append(
            [
                row.name,
                ", ".join(f"{k}={v}" for k, v in setting.items() if k != "name"),
                answers["tokens"],
                f"{answers['gmacs']:.3f}",
                statistics.format_difference(
                    statistics.paired_difference(answers.right, base.right)
                ),
            ]
        )
    head = [
        "method",
        "strongest setting",
        render.TOKENS_LEFT,
        "GMACs",
        "to dense, points",
    ]
    lines = [line + [""] * (len(head) - len(line)) for line in lines]
    return (
        f"Strongest setting of one checkpoint within {POINTS:g} points of its dense "
        "accuracy, by bisection over each method's rate (chosen on the images shown, "
        "so a little too good):\n\n" + render.table(head, lines)
    )
