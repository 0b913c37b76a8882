"""What does the paper claim, and what is measured here? One command a table or figure.

python -m imagepiece_jax.experiments table1 --data folder:PATH --weights FILE_OR_RUN
python -m imagepiece_jax.experiments table1 --data ... --runs FOLDER_OF_TRAINED_RUNS
python -m imagepiece_jax.experiments table1 --data ... --weights FILE --small
python -m imagepiece_jax.experiments search --data ... --weights FILE --budget 0.5

With --weights alone one checkpoint stands for every row, off the shelf; --runs takes
the runs that were trained with each reduction; --small fine-tunes the weights with each
of them, a few epochs and seeds. Points that were measured are kept: the same command
goes on where it was stopped.

NAME: table1, table2, hyperspeed, table3, masking, reassess, similarity, overlap,
lcb-similarity, combos, ablation, tome-offtheshelf, evit-table, throughput; all of them;
or search.
"""

import contextlib
import importlib
import pathlib

from absl import flags

from imagepiece_jax import cli, config_files
from imagepiece_jax.errors import InputError

# Those that one checkpoint can be asked for, and those beside.
NAMES = (
    *("table1", "table2", "hyperspeed", "table3", "masking", "reassess", "similarity"),
    *("overlap", "lcb-similarity", "combos", "ablation", "tome-offtheshelf"),
    *("evit-table", "throughput"),
)
BESIDE = ("search", "all")
# What --small has something to train for.
TRAINS = (
    *("table1", "table2", "hyperspeed", "masking", "reassess", "similarity", "overlap"),
    *("lcb-similarity", "combos", "ablation", "evit-table"),
)
SMALL_CONFIG = config_files.CONFIGS / "deit_ti_finetune_small.py"

cli.define_config("a config file: of --weights that do not tell it, of --small's runs")
WEIGHTS = cli.weights()
NORMALIZATION = cli.normalization()
RUNS = flags.DEFINE_string("runs", None, "a folder of trained runs, one a model")
SMALL = flags.DEFINE_bool("small", False, "fine-tune --weights for every model")
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "of --small's runs")
DATA = cli.data()
RESIZE = cli.resize()
SUBSET = flags.DEFINE_integer("subset", None, "images of the data; default: all")
OUT = flags.DEFINE_string(
    "out", None, "folder; default: runs/experiments", allow_override=True
)
AGAIN = flags.DEFINE_bool("again", False, "measure what was measured before, too")
EVAL_BATCH = flags.DEFINE_integer("eval_batch_size", 100, "images at once", 1)
READERS = flags.DEFINE_integer("readers", 0, "processes that read images", 0)
DTYPE = cli.dtype("of the layers")
SPEED = flags.DEFINE_bool("speed", True, "also measure speeds")
SPEED_BATCH = flags.DEFINE_integer("speed_batch_size", 64, "of speeds in tables", 1)
TIMING = cli.timing()
SIZES = flags.DEFINE_list("batch_sizes", ["1,8,32,64,128,256"], "of throughput")
MODES = flags.DEFINE_list("modes", ["inference", "copy", "train"], "of throughput")
SIZE = flags.DEFINE_enum("size", "deit_s", ["deit_ti", "deit_s"], "of throughput")
MASK_FILL = flags.DEFINE_enum(
    "mask_fill", "mean", ["mean", "black", "noise"], "masking"
)
MASK_GRID = flags.DEFINE_bool("mask_grid", False, "masking: on different patches")
BUDGET = flags.DEFINE_list(
    "budget", ["0.5"], "search: shares of the dense model's cost"
)
METRIC = flags.DEFINE_enum("metric", "gmacs", ["gmacs", "ms"], "search: what is budget")
CANDIDATES = flags.DEFINE_integer(
    "candidates", 48, "search: settings beside published ones", 1
)


def main(words):
    names = _names(words)
    numbers = {
        "seeds": list(dict.fromkeys(map(_seed, SEEDS.value))),
        "budgets": list(dict.fromkeys(map(_share, BUDGET.value))),
    }
    if names != ["throughput"]:
        cli.required(DATA)
    with contextlib.ExitStack() as stack:
        lab = _lab(stack, names, numbers)
        for name in names:
            lab.points.experiment = name
            _told(name, names, lab)
    if len(names) > 1:
        from imagepiece_jax.common.files import replace_file

        pages = [lab.out / f"{name}.md" for name in names]
        text = "\n".join(page.read_text() for page in pages if page.exists())
        replace_file(lab.out / "results.md", text)
        print(f"all pages: {lab.out}/results.md")


def _names(words):
    """The experiments to run; InputError for anything but one known name."""
    known = (*NAMES, *BESIDE)
    if len(words) != 1 or words[0] not in known:
        found = " ".join(words) or "missing"
        raise InputError(f"NAME is {found}; allowed is one of {', '.join(known)}")
    if words[0] != "all":
        return [words[0]]
    # With --small all that trains; without a clock nothing that only the clock tells.
    names = TRAINS if SMALL.value else NAMES
    return [name for name in names if SPEED.value or name != "throughput"]


def _told(name, names, lab):
    """Run one experiment; among all, what it lacks is said and the others go on."""
    name = "combinations" if name == "combos" else name
    module = f"imagepiece_jax.experiments.{name.replace('-', '_')}"
    try:
        importlib.import_module(module).run(lab)
    except InputError as error:
        if len(names) == 1:
            raise
        print(f"{name} is left out: {error}\n", flush=True)


def _seed(text):
    if not text.isdecimal():
        raise InputError(f"--seeds is {text!r}; allowed are whole numbers from 0")
    return int(text)


def _share(text):
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise InputError(
            f"--budget is {text!r}; allowed are shares of the dense model's cost, "
            "between 0 and 1, such as 0.5"
        )
    return value


def _lab(stack, names, numbers):
    """The Lab of the flags; every mistake that can be told now is."""
    from imagepiece_jax.benchmark import device, timer
    from imagepiece_jax.experiments import cache, context
    from imagepiece_jax.experiments.context import Lab
    from imagepiece_jax.models import pretrained

    if names == ["search"] and METRIC.value == "ms" and not SPEED.value:
        raise InputError("--metric ms is of the clock; allowed is it without --nospeed")
    for holder in (SEEDS, BUDGET, SIZES):
        if not holder.value:
            raise InputError(f"--{holder.name} is empty; allowed is one or more")
    if RUNS.value and SMALL.value:
        raise InputError("--runs and --small are both given; allowed is one")
    lacking = [name for name in names if name not in TRAINS]
    if SMALL.value and lacking:
        raise InputError(
            f"--small: {lacking[0]} trains nothing; allowed are {', '.join(TRAINS)}"
        )
    dtype, normalization = DTYPE.value or device.fast_dtype(), NORMALIZATION()
    if normalization and RUNS.value:
        raise InputError("--mean and --std are of --weights; runs tell their own")
    out = pathlib.Path(OUT.value or "runs/experiments")
    subject = trained = small = None
    if RUNS.value:
        trained = tuple(context.runs_in(RUNS.value, dtype))
    elif names != ["throughput"]:
        path = cli.required(WEIGHTS)
        config = None if SMALL.value else cli.config(required=False)
        subject = pretrained.for_analysis(path, config, dtype, normalization)
    if SMALL.value:
        small, subject = _small(subject, out / "small", numbers["seeds"], dtype), None
    points = stack.enter_context(
        contextlib.closing(cache.Points(out, AGAIN.value, device.versions()))
    )
    return Lab(
        points=points,
        images=_images(subject, trained, small),
        out=out,
        subject=subject,
        trained=trained or (),
        small=small,
        rules=timer.Rules(*TIMING()),
        speed_batch=SPEED_BATCH.value,
        timed=SPEED.value,
        options=_options(numbers["budgets"]),
    )


def _options(budgets):
    from imagepiece_jax.benchmark import suite

    base = cli.config(required=False) or config_files.load(config_files.BASE)
    return {
        "mask_fill": MASK_FILL.value,
        "mask_grid": MASK_GRID.value,
        "budgets": budgets,
        "metric": METRIC.value,
        "candidates": CANDIDATES.value,
        "base_config": base,
        "dtype": DTYPE.value,
        "batch_sizes": suite.batch_sizes(SIZES.value),
        "modes": suite.modes(MODES.value, MODES.name),
        "size": SIZE.value,
    }


def _images(subject, trained, small):
    """The images that all models are asked about; None where there are no models."""
    from imagepiece_jax.experiments.images import Images
    from imagepiece_jax.models.class_names import check_classes

    models = trained or ((subject,) if subject else ())
    if small is not None:
        classes, side = small.classes, small.config.image_size
    elif models:
        fields = {(m.fields["num_classes"], m.image_size) for m in models}
        if len(fields) > 1:
            raise InputError(
                f"--runs {RUNS.value} has models of different classes or image sizes, "
                f"{sorted(fields)}; allowed are those of one data set"
            )
        ((classes, side),) = fields
    else:
        return None
    images = Images.open(
        DATA.value,
        classes,
        side,
        limit=SUBSET.value,
        resize=RESIZE.value or "deit",
        batch_size=EVAL_BATCH.value,
        workers=READERS.value,
    )
    names, data = images.source.class_names, f"--data {DATA.value}"
    for model in models:
        check_classes(model.path, names, data)
    return images


def _small(subject, folder, seeds, dtype):
    """What fine-tunes: by --config, else by the repository's config for it."""
    from imagepiece_jax.experiments.finetune import Small

    given = cli.config(required=False)
    config = given or config_files.load(SMALL_CONFIG)
    config.model.dtype = dtype
    config.data.resize = RESIZE.value or config.data.resize
    config.data.workers = READERS.value
    config.data.threads = 2 if READERS.value else 0
    for name in ("stem", "class_token", "mean", "std"):
        value = config.model[name]
        if given is None or value is None:
            config.model[name] = subject.fields.get(name, value)
        elif value != subject.fields.get(name, value):
            raise InputError(
                f"config.model.{name} is {value!r}, but the weights have "
                f"{subject.fields[name]!r}; allowed is that"
            )
    return Small(config, subject, DATA.value, folder, seeds)


if __name__ == "__main__":
    cli.run(main)
