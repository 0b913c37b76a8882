"""Tables of accuracy and speed: the paper's 1, 2, 3, 9, its ablation, EViT's, ToMe's.

The paper's ImagePiece has a convolutional stem and its baselines have not, so each stem
has its own dense model here.
"""

import functools

from experiments import published, render
from experiments.context import OffTheShelf
from experiments.rows import DENSE, TableRow, facts, measure, present, table
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate import statistics
from imagepiece_jax.models.config import create_model

DYNAMICVIT = TableRow("DynamicViT", {"name": "dynamicvit", "keep_rate": 0.7})
SPVIT = TableRow("SPViT", {"name": "spvit"})
# What its published speed fits, see `_spvit`.
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
MAX_LOSS = 2.0  # points of accuracy that table 3's search may lose
BISECTIONS = 5  # of a hundred shares: to about three of them


def table1(context):
    """Methods that prune: every row that there is a model for, as table1.md."""
    title = "comparison with pruning methods"
    sizes = ("deit_s", "deit_ti")
    present(context, "table1", title, TABLE1, sizes=sizes, more=(_spvit,))


def _spvit(_):
    """A sentence on SPViT's two rows."""
    return (
        "SPViT's published speed contradicts the keep rates of its first row, 2.463 "
        "GMACs with DeiT-S: by MACs it would be .79 as efficient as DeiT, where other "
        "rows are .88 to .98. Those of the second, 2.930 GMACs, fit (.94); which the "
        "paper's model has is unknown."
    )


def table2(context):
    """Methods that merge: every row that there is a model for, as table2.md."""
    clustering = functools.partial(_clustering, context)
    title = "comparison with merging methods"
    present(context, "table2", title, TABLE2, more=(clustering,))


def _clustering(context, measured):
    """Table of the time of Token Pooling's loop, which MACs do not count.

    It is timed beside DynamicViT, whose blocks have the same token counts, and whose
    selectors are small.
    """
    pooling = measured[POOLING.name]
    if pooling is None or pooling.speed is None:
        return ""
    same = {"name": "dynamicvit", "keep_rate": pooling.reduction["keep_rate"]}
    other = context.speed(pooling.pretrained, same)
    times = pooling.speed["ms"], other["ms"], pooling.speed["ms"] - other["ms"]
    head = ["ms a batch at equal counts", "Token Pooling", "DynamicViT", "clustering"]
    row = [f"keep {same['keep_rate']}", *(f"{ms:.1f}" for ms in times)]
    return render.table(head, [row])


def table3(context):
    """Tokens left at similar accuracy: the published rows, and for one checkpoint the
    strongest reduction of each method within MAX_LOSS points of dense; table3.md."""
    more = (printed_tokens, functools.partial(_strongest, context))
    present(context, "table3", "tokens left at similar accuracy", TABLE3, more=more)


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


def _strongest(context, measured):
    """Table of the settings that the search finds, where there is one checkpoint."""
    if not isinstance(context.models, OffTheShelf) or measured[DENSE.name] is None:
        return ""
    pretrained, lines = context.pretrained, []
    base = context.evaluate(pretrained, DENSE.reduction)
    for row in (EVIT, TOME, IMAGEPIECE_PATCH):
        best = fewest_tokens(context, pretrained, row.reduction)
        if best is None:
            lines.append([row.name, "none found", "", "", ""])
            continue
        setting, result = best
        change = statistics.paired_difference(result.right, base.right)
        fields = (f"{k}={v}" for k, v in setting.items() if k != "name")
        line = [row.name, ", ".join(fields), result["tokens"]]
        line += [f"{result['gmacs']:.3f}", statistics.format_difference(change)]
        lines.append(line)
    head = ["method", "strongest setting", render.TOKENS_LEFT, "GMACs"]
    return (
        f"Strongest setting of one checkpoint within {MAX_LOSS:g} points of its dense "
        "accuracy, by bisection over each method's rate (chosen on the images shown, "
        "so a little too good):\n\n" + render.table([*head, "to dense, points"], lines)
    )


def fewest_tokens(context, pretrained, reduction):
    """(reduction, Answers) of the least cost within MAX_LOSS of dense, or None.

    Bisection over its share of the MACs, which takes accuracy to fall with it; shares
    that it does not reach count as lost.
    """
    base = context.evaluate(pretrained, DENSE.reduction)
    best, low, high = None, 0, 99  # percent of the MACs that are saved
    for _ in range(BISECTIONS):
        if low > high:
            break
        middle = (low + high) // 2
        try:
            setting = pretrained.config.resolved(
                {**reduction, "macs": 1 - middle / 100}
            )
        except InputError:
            high = middle - 1
            continue
        result = context.evaluate(pretrained, setting)
        loss = -statistics.paired_difference(result.right, base.right).value
        if loss <= MAX_LOSS:
            best, low = (setting, result), middle + 1
        else:
            high = middle - 1
    return best


# Table 9: the paper's combinations have the convolutional stem and what they are
# compared with has not; here each stands beside its own with either stem.
COMBINED = (
    (DYNAMICVIT, "ImagePiece + DynamicViT", {"name": "imagepiece_dynamicvit"}),
    (TOME, "ImagePiece + ToMe", {"name": "imagepiece_tome"}),
    (EVIT, "ImagePiece + EViT", {"name": "imagepiece"}),
)


def _with_stem(name, reduction, stem, usual):
    """A TableRow whose name says where the stem is not the paper's."""
    return TableRow(name if stem == usual else f"{name}, {stem} stem", reduction, stem)


PAIRS = tuple(
    (
        _with_stem(single.name, single.reduction, stem, "patch"),
        _with_stem(name, reduction, stem, "conv"),
    )
    for stem in ("patch", "conv")
    for single, name, reduction in COMBINED
)
COMBINATIONS = (DENSE, *(row for pair in PAIRS for row in pair))


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
        gain = statistics.paired_difference(pair[1].rights, pair[0].rights)
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
}
CONTROLS = ("drop", "random", "tome")  # values of `inattentive`, at the same counts


def switched(stem):
    """A TableRow for each value of each switch, and of each control, with this stem."""
    end = "" if stem == "patch" else ", conv stem"
    switches = tuple(
        TableRow(f"{field}={value}{end}", {"name": "imagepiece", field: value}, stem)
        for field, values in SWITCHES.items()
        for value in values
    )
    return switches + tuple(
        TableRow(
            f"control: {kind}{end}", {"name": "imagepiece", "inattentive": kind}, stem
        )
        for kind in CONTROLS
    )


STEMS = (DENSE, DENSE_CONV, IMAGEPIECE, IMAGEPIECE_PATCH)
ABLATION = (*STEMS, *switched("patch"), *switched("conv"))


def ablation(context):
    """ImagePiece's stem and every switch of it, as ablation.md.

    Where models are trained here, the stem and the schedule alone.
    """
    trains = context.models.trains
    rows = (*STEMS, switched("patch")[0]) if trains else ABLATION
    present(
        context,
        "ablation",
        "local coherence bias and switches",
        rows,
        matched=False,
        stems=("patch", "conv"),
        more=(_to_default,),
    )


def _to_default(results):
    """Table of each switch beside the default, on the same images."""
    lines = []
    for default in (IMAGEPIECE_PATCH, IMAGEPIECE):
        base = results.get(default.name)
        for name, measured in results.items():
            if base is None or measured in (None, base):
                continue
            row = measured.row
            if row.reduction["name"] != "imagepiece" or row.stem != default.stem:
                continue
            change = statistics.paired_difference(measured.rights, base.rights)
            costs = f"{measured.facts['gmacs'] - base.facts['gmacs']:+.3f}"
            lines.append([name, statistics.format_difference(change), costs])
    if not lines:
        return ""
    return render.table(["changed", "to the default, points (paired)", "GMACs"], lines)


EVIT_KINDS = (("fused", True), ("dropped", False))


def evit_row(rate, kind, fuse):
    """A TableRow of EViT's own table: a keep rate, with the fused token or without."""
    reduction = {"name": "evit", "keep_rate": rate, "fuse_token": fuse}
    return TableRow(f"keep {rate}, {kind}", reduction)


EVIT_TABLE = (
    DENSE,
    *(evit_row(rate, *kind) for rate in published.EVIT for kind in EVIT_KINDS),
)


def evit_table(context):
    """EViT by keep rate, as evit-table.md."""
    printed = {
        evit_row(rate, *kind).name: (acc1, None)
        for rate, both in published.EVIT.items()
        for kind, acc1 in zip(EVIT_KINDS, both, strict=True)
    }
    measured = measure(context, EVIT_TABLE, matched=False)
    text = table(EVIT_TABLE, measured, printed, "DeiT-S, EViT's authors")
    title = "EViT by keep rate"
    render.page(context, "evit-table", title, text, facts(context, measured))


TOME_RATES = (0, 4, 8, 10, 13, 16, 20, 25)


def tome_offtheshelf(context):
    """ToMe's own table, of a model that never merged in training, by r.

    As tome-offtheshelf.md, beside what ToMe's authors print for models of its shape.
    """
    pretrained, lines, curve = context.pretrained, [], []
    base = context.evaluate(pretrained, tome_by(0))
    for r in TOME_RATES:
        result = context.evaluate(pretrained, tome_by(r))
        speed = context.speed(pretrained, tome_by(r))
        change = statistics.paired_difference(result.right, base.right)
        curve.append((result["gmacs"], result.accuracy))
        line = [r, result["tokens"], f"{result['gmacs']:.3f}"]
        line += [statistics.format_estimate(result.accuracy)]
        line += [statistics.format_difference(change) if r else ""]
        lines.append([*line, render.speed_cell(speed)])
    head = ["r", render.TOKENS_LEFT, "GMACs", "acc1, %", "to r = 0, points (paired)"]
    text = render.table([*head, "x dense, measured"], lines)
    printed = _printed_by_tome(pretrained)
    path = context.out / "tome-offtheshelf.png"
    render.curves(path, "GMACs an image", "accuracy, %", {"ToMe": curve})
    title = "ToMe without training, by r"
    facts = render.facts(context)
    render.page(context, "tome-offtheshelf", title, text, printed, facts)


def tome_by(r: int) -> dict:
    """ToMe merging r tokens a block, with proportional attention."""
    return {"name": "tome", "r": r}


def _printed_by_tome(pretrained):
    """Table of the figures of ToMe's authors for models of this shape."""
    model = pretrained.config.create(tome_by(0))
    shape = model.embed_dim, len(model.plan), model.patch_size
    shape += (pretrained.config.image_size,)
    rows = [row for row in published.TOME if row[2] == shape]
    if not rows:
        return ""
    head = ["ImageNet-1k, published, V100", "kind", "r", "acc1, dense", "img/s, dense"]
    lines = [[name, kind, *figures] for name, kind, _, *figures in rows]
    return render.table([*head, "acc1, %", "img/s"], lines)
