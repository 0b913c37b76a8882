"""What do accuracy and cost become over methods and rates? One checkpoint, one table.

`evaluate --sweep tome:r=4,8,13 --sweep evit:keep_rate=.9,.7` calls this. Every setting
is evaluated on the same images, so differences to the dense model are paired.
"""

import ast
import itertools
import json
import pathlib
import time

import jax
import numpy as np

from imagepiece_jax.common import parallel, plotting
from imagepiece_jax.common.files import make_folder, replace_file
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate import accuracy
from imagepiece_jax.models import registry, summary
from imagepiece_jax.reduction import methods
from imagepiece_jax.training import initial_weights

CONFIDENT = 1.96  # standard errors of a 95 % interval
# Fields of the model that a setting may name beside those of its method.
MODEL_FIELDS = ("prop_attn",)
TIMED_CALLS = 5
SWITCHES = ("true", "false")


def parse(text):
    """Settings of "METHOD:FIELD=V1,V2:FIELD=V": a list of dicts, one for each mix.

    Values are Python literals; words without quotes are strings. A method without
    fields is one setting. InputError for what cannot be read, or a field the method has
    not.
    """
    name, *parts = text.split(":")
    names, choices = [], []
    for part in parts:
        field, equals, values = part.partition("=")
        if not equals or not values:
            raise InputError(
                f"--sweep {text}: found {part!r}; allowed is FIELD=VALUE,VALUE, such "
                "as evit:keep_rate=.9,.7"
            )
        if field in names:
            raise InputError(
                f"--sweep {text}: {field} is there twice; allowed is one list of "
                f"values, such as {field}=V1,V2"
            )
        names.append(field)
        choices.append([_literal(value) for value in _split(values)])
    found = [dict(zip(names, mix, strict=True)) for mix in itertools.product(*choices)]
    for fields in found:
        own = {k: v for k, v in fields.items() if k not in MODEL_FIELDS}
        known = (*methods.create(name, **own).inference_fields(),)
        for field in own:
            if field not in known:
                raise InputError(
                    f"--sweep {text}: {field} changes training alone; allowed are "
                    f"{', '.join(known + MODEL_FIELDS)}"
                )
    return [{"name": name, **fields} for fields in found]


def _split(values):
    """At the commas that are outside of brackets."""
    parts, depth = [""], 0
    for letter in values:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _literal(text):
    try:
        return ast.literal_eval(text.capitalize() if text in SWITCHES else text)
    except (ValueError, SyntaxError):
        return text


def label(setting):
    """A setting in a few words: "evit keep_rate=0.7"."""
    fields = [f"{k}={v}" for k, v in setting.items() if k != "name"]
    return " ".join(
        ["dense" if setting["name"] == "none" else setting["name"], *fields]
    )


def run(config, settings, load, batches, images, folder):
    """Evaluate one checkpoint for every setting; writes and returns the rows.

    `load(like, fresh)` reads the weights, `batches()` gives the evaluation batches of
    the `images` anew. The dense model comes first. `folder` gets sweep.jsonl (a row as
    soon as it is measured), sweep.md and sweep.png.
    """
    settings = [{"name": "none"}, *(s for s in settings if s["name"] != "none")]
    models = [_model(config, setting) for setting in settings]
    folder = pathlib.Path(folder)
    make_folder("--out", folder)
    rows, dense = [], None
    for setting, model in zip(settings, models, strict=True):
        variables, untrained = _variables(config, model, load)
        row, right = _measure(config, model, variables, batches(), images)
        dense = right if dense is None else dense
        row = {"setting": label(setting), "untrained": untrained} | row
        rows.append(row | paired_difference(right, dense))
        lines = "".join(json.dumps(r) + "\n" for r in rows)
        replace_file(folder / "sweep.jsonl", lines)
        print(_line(rows[-1]), flush=True)
    replace_file(folder / "sweep.md", table(rows))
    points = [
        (r["setting"].split()[0] + _untrained(r), r["gmacs"], r["acc1"], r["error"])
        for r in rows
    ]
    plotting.accuracy_plot(folder / "sweep.png", points)
    print(f"rows, table and plot: {folder}/sweep.jsonl, .md, .png")
    return rows


def _variables(config, model, load):
    """(variables, whether they have reducers that the checkpoint lacks).

    A dense checkpoint has no learned selectors: these are then fresh, which says
    nothing about the method.
    """
    like = summary.shapes(model, config.image_size)
    if not any(name.startswith("reducer") for name in like["params"]):
        return load(like), False
    try:
        return load(like), False
    except InputError:
        drawn = initial_weights.fresh(model, config.image_size, config.seed)
        return load(drawn, ("reducer",)), True


def _model(config, setting):
    model_fields = {k: v for k, v in setting.items() if k in MODEL_FIELDS}
    reduction = {k: v for k, v in setting.items() if k not in MODEL_FIELDS}
    return registry.create_model(
        image_size=config.image_size,
        num_classes=config.num_classes,
        reduction=reduction,
        **(config.model.to_dict() | model_fields),
    )


def _measure(config, model, variables, batches, images):
    """(row of figures, whether each image was classified right: [images] bool)."""
    step, variables = (
        accuracy.compiled(model, config.seed),
        parallel.replicate(variables),
    )
    right, first = np.zeros(images, bool), None

    def noted(batches):
        nonlocal first
        for batch in batches:
            first = batch if first is None else first
            yield batch

    result = accuracy.evaluate(step, variables, noted(batches), right)
    times = []
    for _ in range(TIMED_CALLS):
        began = time.perf_counter()
        jax.block_until_ready(step(variables, first))
        times.append(time.perf_counter() - began)
    share = result["acc1"] / 100
    error = 100 * CONFIDENT * np.sqrt(share * (1 - share) / max(result["images"], 1))
    row = {
        "acc1": result["acc1"],
        "error": float(error),
        "acc5": result["acc5"],
        "loss": result["loss"],
        "images": result["images"],
        "tokens": model.plan[-1].mlp_tokens,
        "gmacs": registry.model_macs(model, config.image_size) / 1e9,
        "throughput": first["label"].size / float(np.median(times)),
    }
    return row, right


def paired_difference(right, dense):
    """Mean difference of acc1, image by image, and its 95 % interval, in points.

    right, dense: whether each image was classified right, [images] bool.
    """
    each = right.astype(float) - dense.astype(float)
    error = CONFIDENT * each.std() / np.sqrt(len(each))
    return {"difference": 100 * each.mean(), "difference_error": 100 * error}


def _untrained(row):
    return " (untrained selectors)" if row["untrained"] else ""


def _line(row):
    return (
        f"{row['setting']}{_untrained(row)}: acc1 {row['acc1']:.1f} +- "
        f"{row['error']:.1f} %, to dense {row['difference']:+.1f} +- "
        f"{row['difference_error']:.1f}, {row['tokens']} "
        f"tokens, {row['gmacs']:.3f} GMACs, {row['throughput']:.0f} img/s"
    )


def table(rows):
    """The rows as a Markdown table."""
    head = (
        "| setting | acc1, % | to dense (paired) | acc5, % | tokens | GMACs | img/s |"
    )
    lines = [head, "|---|---|---|---|---|---|---|"]
    for r in rows:
        lines.append(
            f"| {r['setting']}{_untrained(r)} | {r['acc1']:.1f} ± {r['error']:.1f} "
            f"| {r['difference']:+.1f} ± {r['difference_error']:.1f} "
            f"| {r['acc5']:.1f} | {r['tokens']} | {r['gmacs']:.3f} "
            f"| {r['throughput']:.0f} |"
        )
    note = f"\nIntervals are 95 %, {rows[0]['images']} images, class token counted.\n"
    return "\n".join(lines) + "\n" + note
