"""Tables of accuracy and speed: the paper's 1, 2, 3, 9, and its ablation.

The paper's ImagePiece has a convolutional stem and its baselines have not, so each stem
has its own dense model here.
"""

import itertools

from experiments import intervals, published, render
from experiments.controls import CONTROLS
from experiments.rows import DENSE, TableRow, present
from imagepiece_jax.evaluate import statistics
from imagepiece_jax.models.config import create_model

DYNAMICVIT = TableRow("DynamicViT", {"name": "dynamicvit", "keep_rate": 0.7})
SPVIT = TableRow("SPViT", {"name": "spvit"})
# What its published speed fits: see `schedule.efficiency_table`.
SPVIT_BY_SPEED = TableRow(
    "SPViT, keep .7, .49, .343", {"name": "spvit", "keep_rates": (0.7, 0.49, 0.343)}
)
EVIT = TableRow("EViT", {"name": "evit", "keep_rate": 0.7})
TOME = TableRow("ToMe", {"name": "tome", "r": 13})
POOLING = TableRow("Token Pooling", {"name": "token_pooling", "keep_rate": 0.7})
LEARNER = TableRow(
    "TokenLearner", {"name": "token_learner", "num_tokens": 16, "block": 7}
)
IMAGEPIECE = TableRow("ImagePiece", {"name": "imagepiece"}, stem="conv")
IMAGEPIECE_PATCH = TableRow("ImagePiece, patch stem", {"name": "imagepiece"})
DENSE_CONV = TableRow("DeiT, conv stem", DENSE.reduction, stem="conv")
MERGE_ONLY = {"name": "imagepiece", "merge_ratio": 0.15, "prune_blocks": ()}
FAST = {"name": "imagepiece", "keep_rate": 0.6}

# Table 1: methods that prune.
TABLE1 = (
    *(DENSE, DYNAMICVIT, SPVIT, SPVIT_BY_SPEED, EVIT),
    *(IMAGEPIECE, IMAGEPIECE_PATCH, DENSE_CONV),
)
# Table 2: methods that merge.
TABLE2 = (
    *(DENSE, POOLING, LEARNER, TOME),
    TableRow("ImagePiece, no pruning", MERGE_ONLY, stem="conv"),
    TableRow("ImagePiece, no pruning, patch stem", MERGE_ONLY),
    *(IMAGEPIECE, IMAGEPIECE_PATCH, DENSE_CONV),
)
# Table 3: tokens left at similar accuracy.
TABLE3 = (
    *(DENSE, DYNAMICVIT, EVIT, TOME),
    # Published where the text is about harsher rates without retraining.
    TableRow("ImagePiece, keep .6", FAST, "conv", trained=IMAGEPIECE.reduction),
    TableRow("ImagePiece, keep .6, patch stem", FAST, trained=IMAGEPIECE.reduction),
)


def table1(context):
    """Methods that prune: every row that there is a model for, as table1.md."""
    title = "comparison with pruning methods"
    present(context, "table1", title, TABLE1, sizes=("deit_s", "deit_ti"))


def table2(context):
    """Methods that merge: every row that there is a model for, as table2.md."""
    present(context, "table2", "comparison with merging methods", TABLE2)


def table3(context):
    """Tokens left at similar accuracy, as table3.md."""
    title = "tokens left at similar accuracy"
    present(context, "table3", title, TABLE3, more=(printed_tokens,))


def printed_tokens(_):
    """Table of the published token counts beside those of the plans, of DeiT-S."""
    lines = []
    for name, tokens in published.OUTPUT_TOKENS.items():
        row = next(row for row in TABLE3 if row.name == name)
        lines.append([name, tokens, plan_tokens(row)])
    head = ["DeiT-S", f"tokens ({published.LABEL})", "tokens of our plan"]
    return render.table(head, lines)


def plan_tokens(row):
    """Tokens of DeiT-S after the last block, class token included."""
    model = create_model("deit_s", stem=row.stem, reduction=row.reduction)
    return model.plan[-1].mlp_tokens


# Table 9: the paper's combinations have the convolutional stem and what they are
# compared with has not; here each stands beside its own with either stem.
COMBINED = (
    (DYNAMICVIT, "ImagePiece + DynamicViT", {"name": "imagepiece_dynamicvit"}),
    (TOME, "ImagePiece + ToMe", {"name": "imagepiece_tome"}),
    (EVIT, "ImagePiece + EViT", {"name": "imagepiece"}),
)


def _with_stem(name, reduction, stem, usual):
    """A TableRow whose name says where the stem is not the paper's."""
    if stem != usual:
        name = f"{name}, {stem} stem"
    return TableRow(name, reduction, stem)


def _pair(stem, combined):
    """(a method alone, with ImagePiece), both with this stem."""
    single, name, reduction = combined
    return (
        _with_stem(single.name, single.reduction, stem, "patch"),
        _with_stem(name, reduction, stem, "conv"),
    )


PAIRS = tuple(itertools.starmap(_pair, itertools.product(("patch", "conv"), COMBINED)))
COMBINATIONS = (DENSE, *itertools.chain(*PAIRS))


def combinations(context):
    """ImagePiece added to other methods, as combos.md."""
    title = "ImagePiece added to other methods"
    present(context, "combos", title, COMBINATIONS, more=(_gains,))


def _gains(results):
    """Table of the gains of each combination, on the same images."""
    lines = []
    for single, combined in PAIRS:
        pair = results[single.name], results[combined.name]
        if None in pair or any(m.facts["untrained_selectors"] for m in pair):
            continue
        gain = intervals.difference(pair[1].rights, pair[0].rights)
        costs = [f"{measured.facts['gmacs']:.3f}" for measured in pair]
        lines.append([single.name, *costs, statistics.format_difference(gain)])
    if not lines:
        return ""
    head = ["added to", "its GMACs", "combined", "gain, points (paired)"]
    return render.table(head, lines)


# Ablation: published is the stem alone, 79.81 without it, 80.22 with it (DeiT-S).
# Each field -> values beside the default's; the cost changes with some of them.
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
    "inattentive": ("drop",),  # a control at the same counts, as those of `controls`
}


def switched(stem):
    """A TableRow for each value of each switch and each control, with this stem."""
    end = "" if stem == "patch" else ", conv stem"
    rows = []
    for field, values in SWITCHES.items():
        for value in values:
            reduction = {"name": "imagepiece", field: value}
            rows.append(TableRow(f"{field}={value}{end}", reduction, stem))
    rows += [TableRow(f"{name}{end}", {"name": name}, stem) for name in CONTROLS]
    return tuple(rows)


STEMS = (DENSE, DENSE_CONV, IMAGEPIECE, IMAGEPIECE_PATCH)
ABLATION = (*STEMS, *switched("patch"), *switched("conv"))


def ablation(context):
    """ImagePiece's stem and every switch of it, as ablation.md.

    Where models are trained here, the stem and the schedule alone.
    """
    trains = context.models.trains
    rows = (*STEMS, switched("patch")[0]) if trains else ABLATION
    title = "local coherence bias and switches"
    present(context, "ablation", title, rows, by_stem=True, more=(_to_default,))


def _to_default(results):
    """Table of each switch beside the default, on the same images."""
    lines = []
    for default in (IMAGEPIECE_PATCH, IMAGEPIECE):
        base = results.get(default.name)
        for name, measured in results.items():
            if base is None or measured in (None, base):
                continue
            row = measured.row
            switch = row.reduction["name"] in ("imagepiece", *CONTROLS)
            if not switch or row.stem != default.stem:
                continue
            change = intervals.difference(measured.rights, base.rights)
            costs = f"{measured.facts['gmacs'] - base.facts['gmacs']:+.3f}"
            lines.append([name, statistics.format_difference(change), costs])
    if not lines:
        return ""
    return render.table(["changed", "to the default, points (paired)", "GMACs"], lines)
