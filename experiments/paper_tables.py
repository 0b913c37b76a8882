"""Tables of accuracy and speed: the paper's 1, 2, 3, 9, and its ablation.

A row is a model, measured beside published figures. The paper's ImagePiece has a
convolutional stem and its baselines have not, so each stem has its own dense model
here.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments import intervals, published
from experiments.controls import CONTROLS
from imagepiece_jax.common import statistics
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluation.result_cache import name_use
from imagepiece_jax.models.create import create_model
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.registry import MODELS
from imagepiece_jax.reduction.reduction import Reduction

BLANK = "not measured"
TOKENS_LEFT = "tokens left, with class token"
UNTRAINED = "keep tokens by fresh weights: their rows say what the counts cost"


@dataclasses.dataclass(frozen=True)
class TableRow:
    """A model of a table."""

    name: str
    reduction: str
    stem: str = "patch"
    # The reduction in training, where the row's is applied afterwards.
    trained: str | None = None


DENSE = TableRow("DeiT", "none")
DYNAMICVIT = TableRow("DynamicViT", "dynamicvit:keep_rate=0.7")
SPVIT = TableRow("SPViT", "spvit")
# SPViT's published speed fits these rates.
BY_SPEED = "spvit:keep_rates=(0.7,0.49,0.343)"
SPVIT_BY_SPEED = TableRow("SPViT, keep .7, .49, .343", BY_SPEED)
EVIT = TableRow("EViT", "evit:keep_rate=0.7")
TOME = TableRow("ToMe", "tome:r=13")
POOLING = TableRow("Token Pooling", "token_pooling:keep_rate=0.7")
LEARNER = TableRow("TokenLearner", "token_learner:num_tokens=16:block=7")
IMAGEPIECE = TableRow("ImagePiece", "imagepiece", stem="conv")
IMAGEPIECE_PATCH = TableRow("ImagePiece, patch stem", "imagepiece")
DENSE_CONV = TableRow("DeiT, conv stem", DENSE.reduction, stem="conv")
MERGE_ONLY = "imagepiece:merge_ratio=0.15:prune_blocks=()"
FAST = "imagepiece:keep_rate=0.6"

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


@dataclasses.dataclass(frozen=True)
class Measured:
    """A row's answers, a model a seed, and the dense models' answers."""

    row: TableRow
    pretrained: Pretrained
    reduction: Reduction | str
    results: tuple[Any, ...]  # an `Answers` a seed
    bases: tuple[Any, ...]  # dense, of the same seeds
    speed: Mapping[str, float] | None

    @property
    def rights(self):
        """Right answers. bool [seeds, images]."""
        return np.stack([result.right for result in self.results])

    @property
    def accuracy(self):
        return intervals.estimate_accuracy(self.rights)

    @property
    def difference(self):
        """Points to the dense model of the same seed; None where there is none."""
        if not self.bases:
            return None
        bases = [result.right for result in self.bases]
        return intervals.estimate_difference(self.rights, bases)

    @property
    def facts(self):
        return self.results[0].figures


def find_models(study, row):
    """The models of a row, one a seed, as `Models.find` has them."""
    models = study.models.find(row.trained or row.reduction, row.stem)
    return [(vit, row.reduction) for vit, _ in models] if row.trained else models


def measure_rows(study, rows):
    """Measure the rows of a table, and the dense model.

    Returns {name of a row: Measured, or None where there is no such model}.
    Raises InputError where there is not one model.
    """
    models = {row: find_models(study, row) for row in dict.fromkeys((DENSE, *rows))}
    for vits in models.values():
        for vit, reduction in vits:
            vit.reduced_model(reduction)  # fail before anything is measured
    if not any(models.values()):
        raise InputError("--weights or --runs has no model of this table")
    results = {}
    for row, vits in models.items():
        results[row.name] = None
        if vits:
            results[row.name] = measure_row(study, row, vits, models[DENSE])
    return results


def measure_row(study, row, models, dense):
    """Measure a row's models and the dense ones.

    The first dense model stands in for those of other seeds.
    """
    by_seed = {}
    for vit, reduction in dense:
        by_seed[vit.origin.seed] = study.evaluate(vit, reduction)
    results = []
    bases = []
    for vit, reduction in models:
        results.append(study.evaluate(vit, reduction))
        if by_seed:
            bases.append(by_seed.get(vit.origin.seed, next(iter(by_seed.values()))))
    vit, reduction = models[0]
    speed = study.speed(vit, reduction)
    return Measured(row, vit, reduction, tuple(results), tuple(bases), speed)


def rows_table(rows, results, printed, whose):
    """The Markdown table of rows; a row without a model and figures is left out.

    printed: published (acc1, img/s) by a row's name; img/s may be None
    whose: their model size, for the heading
    """
    label = f"{whose}, {published.LABEL}"
    timed = any(speed for _, speed in printed.values())
    several = any(entry and len(entry.results) > 1 for entry in results.values())
    head = ["model", f"acc1, % ({label})"]
    if timed:
        head.append(f"img/s, RTX 3090 ({label})")
    head += ["weights", "acc1, % (measured)", "to dense, points (paired)"]
    if several:
        head.append("acc1 by seed")
    head += [TOKENS_LEFT, "GMACs", "x dense by MACs", "x dense, measured"]
    dense = results[DENSE.name]
    lines = []
    for row in rows:
        measured = results[row.name]
        if measured is None and row.name not in printed:
            continue
        acc1, speed = printed.get(row.name, (None, None))
        line = [row.name, published.format_figure(acc1)]
        if timed:
            line.append(published.format_figure(speed, 1))
        if measured is None:
            line.append("none")
            line += [BLANK] * (len(head) - len(line))
        else:
            line += measured_cells(measured, dense, several)
        lines.append(line)
    return markdown_table(head, lines)


def measured_cells(measured, dense, several):
    """The measured cells of a line; several: whether it has accuracies by seed."""
    facts = measured.facts
    gmacs = facts["gmacs"]
    use = name_use(measured.pretrained, measured.reduction)
    if facts["untrained_selectors"]:
        use += ", untrained selectors"
    difference = ""
    if measured.row != DENSE:
        difference = statistics.format_difference(measured.difference)
    ratio = f"{dense.facts['gmacs'] / gmacs:.2f}" if dense else ""
    cells = [use, statistics.format_estimate(measured.accuracy), difference]
    if several:
        seeds = [f"{answers['acc1']:.1f}" for answers in measured.results]
        cells.append(" ".join(seeds))
    cells += [facts["tokens"], f"{gmacs:.3f}", ratio, speed_cell(measured.speed)]
    return cells


def speed_cell(speed):
    """ "1.54 (1.50 to 1.57)", times as fast as dense."""
    if speed is None:
        return BLANK
    low = speed["ratio_min"]
    high = speed["ratio_max"]
    return f"{speed['ratio']:.2f} ({low:.2f} to {high:.2f})"


def describe_table(study, results):
    """Images and models of a table, and its missing rows."""
    more = {}
    lacking = [name for name, measured in results.items() if measured is None]
    if lacking:
        more["no model of"] = "; ".join(lacking)
    measured = [entry for entry in results.values() if entry is not None]
    if any(entry.facts["untrained_selectors"] for entry in measured):
        more["untrained selectors"] = UNTRAINED
    return study.facts(more)


def write_table_page(study, name):
    """Measure the rows of one of PAGES, and write its page, NAME.md."""
    title, rows, sizes, make_further_table = PAGES[name]
    results = measure_rows(study, rows)
    text = rows_table(rows, results, *published_figures(results, sizes))
    further = make_further_table(results) if make_further_table else ""
    study.write_page(name, title, text, describe_table(study, results), further)


def published_figures(results, sizes):
    """Published (acc1, img/s) by row of the models' size, and the size's name.

    sizes: sizes of the paper's tables; the first stands in for any other
    """
    first = next(entry for entry in results.values() if entry is not None)
    name = first.pretrained.config.name
    size = name if name in sizes else sizes[0]
    return published.ACCURACY_SPEED[size], published.SIZES[size]


# The tables


def printed_tokens(_):
    """Table of the published token counts beside those of the plans, of DeiT-S."""
    rows = {row.name: row for row in TABLE3}
    lines = []
    for name, tokens in published.OUTPUT_TOKENS.items():
        lines.append([name, tokens, plan_tokens(rows[name])])
    head = ["DeiT-S", f"tokens ({published.LABEL})", "tokens of our plan"]
    return markdown_table(head, lines)


def plan_tokens(row):
    """Tokens of DeiT-S after the last block, class token included."""
    config = dataclasses.replace(MODELS["deit_s"], stem=row.stem)
    return create_model(config, row.reduction).plan[-1].mlp_tokens


# Table 9: the paper's combinations have the convolutional stem, and their baselines do
# not; here each combination stands beside its baseline, with either stem.
COMBINED = (
    (DYNAMICVIT, "ImagePiece + DynamicViT", "imagepiece_dynamicvit"),
    (TOME, "ImagePiece + ToMe", "imagepiece_tome"),
    (EVIT, "ImagePiece + EViT", "imagepiece"),
)


def _pair_rows(stem):
    """[(a method alone, with ImagePiece)], all with this stem."""
    # A name says where the stem is not the paper's.
    single_end = "" if stem == "patch" else f", {stem} stem"
    combined_end = "" if stem == "conv" else f", {stem} stem"
    pairs = []
    for single, name, reduction in COMBINED:
        alone = TableRow(f"{single.name}{single_end}", single.reduction, stem)
        pairs.append((alone, TableRow(f"{name}{combined_end}", reduction, stem)))
    return pairs


PAIRS = (*_pair_rows("patch"), *_pair_rows("conv"))
COMBINATIONS = (DENSE, *itertools.chain(*PAIRS))


def gains_table(results):
    """Table of the gain of each combination, on the same images."""
    lines = []
    for rows in PAIRS:
        pair = [results[row.name] for row in rows]
        if None in pair or any(x.facts["untrained_selectors"] for x in pair):
            continue
        single, combined = pair
        costs = [f"{measured.facts['gmacs']:.3f}" for measured in pair]
        gain = intervals.estimate_difference(combined.rights, single.rights)
        lines.append([single.row.name, *costs, statistics.format_difference(gain)])
    head = ["added to", "its GMACs", "combined", "gain, points (paired)"]
    return lines and markdown_table(head, lines)


# Ablation: published is the stem alone, 79.81 without it, 80.22 with it (DeiT-S).
# Each field -> values beside the default's; some change the cost.
SWITCHES = {
    "candidate_ratio": (0.2, 0.4, 0.5),
    "merge_ratio": (0.04, 0.12),
    "prop_attn": (True,),
    "parity": (1,),
    "metric": ("query", "value", "token"),
    "size_weighting": (False,),
}


def list_switches(stem):
    """A TableRow for each value of each switch and each control, with this stem."""
    end = "" if stem == "patch" else ", conv stem"
    rows = []
    for field, values in SWITCHES.items():
        for value in values:
            reduction = f"imagepiece:{field}={value}"
            rows.append(TableRow(f"{field}={value}{end}", reduction, stem))
    for name in CONTROLS:
        rows.append(TableRow(f"{name}{end}", name, stem))
    return tuple(rows)


STEMS = (DENSE, DENSE_CONV, IMAGEPIECE, IMAGEPIECE_PATCH)
ABLATION = (*STEMS, *list_switches("patch"), *list_switches("conv"))


def switches_table(results):
    """Table of each switch beside the default, on the same images."""
    lines = []
    for default in (IMAGEPIECE_PATCH, IMAGEPIECE):
        base = results.get(default.name)
        for name, measured in results.items():
            if None in (base, measured) or measured is base:
                continue
            method_name = measured.row.reduction.partition(":")[0]
            is_switch = method_name in ("imagepiece", *CONTROLS)
            if not is_switch or measured.row.stem != default.stem:
                continue
            change = intervals.estimate_difference(measured.rights, base.rights)
            cost = measured.facts["gmacs"] - base.facts["gmacs"]
            lines.append([name, statistics.format_difference(change), f"{cost:+.3f}"])
    head = ["changed", "to the default, points (paired)", "GMACs"]
    return lines and markdown_table(head, lines)


SMALL = ("deit_s",)  # DeiT-Ti's figures are published in table 1 alone.
# {name: (title, rows, published sizes, a further table of their results)}
PAGES = {
    "table1": ("comparison with pruning methods", TABLE1, (*SMALL, "deit_ti"), None),
    "table2": ("comparison with merging methods", TABLE2, SMALL, None),
    "table3": ("tokens left at similar accuracy", TABLE3, SMALL, printed_tokens),
    "combos": ("ImagePiece added to other methods", COMBINATIONS, SMALL, gains_table),
    "ablation": ("local coherence bias and switches", ABLATION, SMALL, switches_table),
}
