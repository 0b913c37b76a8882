"""The paper's tables and figures: one command each, published beside measured.

python -m experiments table1 --data folder:PATH --weights FILE_OR_RUN
python -m experiments table1 --data ... --runs FOLDER_OF_TRAINED_RUNS
python -m experiments table1 --data ... --weights FILE --small
python -m experiments adapt --data ... --weights FILE
python -m experiments saliency --data ... --weights FILE --decoder FILE
python -m experiments patch_features --data ... --weights FILE --sweep tome:r=8
python -m experiments scratch --data folder:PATH --hours 2

With --weights alone one checkpoint stands for every row, off the shelf; --runs takes
the runs that were trained with each reduction; --small fine-tunes the weights with each
of them, a few epochs and seeds. Results are cached: the same command resumes where it
was stopped.

NAME: table1, table2, hyperspeed, table3, masking, reassess, similarity, overlap,
lcb-similarity, combos, ablation, tome-offtheshelf, evit-table, throughput, schedule;
all of them; adapt; parts, level, carried, carried-maps, calibration, decisions;
saliency, saliency-picture; patch_features; fixed_tokens; int8; or scratch,
which trains from random weights.
"""

from experiments.scratch.options import Options
from experiments.settings import SWEEPS, TableSettings, check_flags, define_flags
from imagepiece_jax import cli
from imagepiece_jax.errors import InputError

cli.define_config(
    "a config file: of --weights that lack a config, of --small's runs, of adapt's"
)
WEIGHTS, DATA = cli.weights(), cli.data()
NORMALIZATION = cli.normalization()
cli.resize()
cli.limit()
cli.sweep(f"{', '.join(SWEEPS)}: the methods to compare")
cli.dtype("of the layers")
TIMING = cli.timing()
SETTINGS, SCRATCH = define_flags(TableSettings), define_flags(Options)


def main(words):
    # They import JAX: after the flags.
    from experiments import runner
    from experiments.scratch import runs as scratch

    TIMING()
    (config, overrides), normalization = cli.config_or_base(), NORMALIZATION()
    if overrides is not None and not overrides:
        config = None
    settings = SETTINGS()
    names = runner.select(words, settings)
    check_flags(names, TableSettings, Options)
    if names == ["scratch"]:
        if config or normalization or settings.weights:
            raise InputError(
                "scratch trains from random weights, by flags of its own; allowed: "
                "those of --help that name it, without --config, --weights, --mean and "
                "--std"
            )
        return scratch.run(SCRATCH(), cli.required(DATA), settings)
    if not set(names) <= set(runner.NO_WEIGHTS):
        cli.required(DATA)
        if not settings.runs:
            cli.required(WEIGHTS)
    runner.run(names, settings, config, normalization, overrides)


if __name__ == "__main__":
    cli.run(main)
