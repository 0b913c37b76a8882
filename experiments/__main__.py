"""The paper's tables and figures: one command each, published beside measured.

python -m experiments table1 --data folder:PATH --weights FILE_OR_RUN
python -m experiments table1 --data ... --runs FOLDER_OF_TRAINED_RUNS
python -m experiments table1 --data ... --weights FILE --small
python -m experiments compare --data ... --weights FILE
python -m experiments adapt --data ... --weights FILE
python -m experiments scratch --data folder:PATH --hours 2

With --weights alone one checkpoint stands for every row, off the shelf; --runs takes
the runs that were trained with each reduction; --small fine-tunes the weights with each
of them, a few epochs and seeds. Results are cached: the same command resumes where it
was stopped.

NAME: table1, table2, hyperspeed, table3, masking, reassess, similarity, overlap,
lcb-similarity, combos, ablation, tome-offtheshelf, evit-table, throughput, schedule;
all of them; compare; adapt; or scratch, which trains from random weights.
"""

import dataclasses
import pathlib

from absl import flags

from experiments.scratch.options import Options
from imagepiece_jax import cli

cli.define_config(
    "a config file: of --weights that lack a config, of --small's runs, of adapt's"
)
WEIGHTS = cli.weights()
NORMALIZATION = cli.normalization()
RUNS = flags.DEFINE_string("runs", None, "a folder of trained runs, one a model")
SMALL = flags.DEFINE_bool("small", False, "fine-tune --weights for every model")
flags.DEFINE_list("seeds", ["0", "1", "2"], "of --small's runs")
DATA = cli.data()
cli.resize()
flags.DEFINE_integer("subset", None, "images of the data, evenly; default: all")
cli.limit()
flags.DEFINE_string(
    "out", None, "folder; default: runs/experiments", allow_override=True
)
flags.DEFINE_bool("again", False, "measure what was measured before, too")
flags.DEFINE_integer("eval_batch_size", 100, "images at once", 1)
flags.DEFINE_integer("readers", 0, "processes that read images", 0)
cli.dtype("of the layers")
SPEED = flags.DEFINE_bool("speed", True, "also measure speeds")
flags.DEFINE_integer("speed_batch_size", 64, "of speeds in tables", 1)
TIMING = cli.timing()
flags.DEFINE_list("batch_sizes", ["1,8,32,64,128,256"], "of throughput")
flags.DEFINE_list("modes", ["inference", "copy", "train"], "of throughput")
flags.DEFINE_enum("size", "deit_s", ["deit_ti", "deit_s"], "of throughput")
flags.DEFINE_enum("mask_fill", "mean", ["mean", "black", "noise"], "masking")
flags.DEFINE_bool("mask_grid", False, "masking: on different patches")
flags.DEFINE_enum("metric", "gmacs", ["gmacs", "ms"], "compare: what is cost")
flags.DEFINE_list(
    "shares", ["0.9", "0.75", "0.6", "0.5", "0.4"], "compare: of the dense model's cost"
)
flags.DEFINE_list("methods", [], "compare: these, tome and random; default: all")
flags.DEFINE_integer("folds", 5, "adapt: parts of the data, each tested on once")
SCRATCH = cli.options(Options)


def main(words):
    # They import JAX: after the flags.
    from experiments import runner
    from experiments.scratch import runs as scratch
    from imagepiece_jax.common import timer

    names = runner.select(words, small=SMALL.value, timed=SPEED.value)
    known = {field.name for field in dataclasses.fields(runner.Settings)}
    given = {k: flags.FLAGS[k].value for k in known if k in flags.FLAGS}
    given |= {
        "config": cli.config(required=False),
        "load_config": lambda name: cli.load_config(f"{cli.CONFIGS}/{name}"),
        "normalization": NORMALIZATION(),
        "rules": timer.Rules(*TIMING()),
    }
    settings = runner.Settings(**given)
    seeds, _ = runner.check(names, settings)
    if names == ["scratch"]:
        out = pathlib.Path(settings.out or "runs/experiments")
        return scratch.run(SCRATCH(), cli.required(DATA), seeds, settings.dtype, out)
    if not set(names) <= set(runner.NO_WEIGHTS):
        cli.required(DATA)
        if not RUNS.value:
            cli.required(WEIGHTS)
    runner.run(names, settings)


if __name__ == "__main__":
    cli.run(main)
