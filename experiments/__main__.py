"""The paper's tables and figures: one command each, published beside measured.

python -m experiments table1 --data folder:PATH --weights FILE_OR_RUN
python -m experiments table1 --data ... --runs FOLDER_OF_TRAINED_RUNS
python -m experiments table1 --data ... --weights FILE --small
python -m experiments scratch --data folder:PATH --epochs 20

With --weights alone one checkpoint stands for every row, off the shelf; --runs takes
the runs that were trained with each reduction; --small fine-tunes the weights with each
of them, a few epochs and seeds. Results are cached: the same command resumes where it
was stopped.

NAME: table1, table2, hyperspeed, table3, masking, reassess, similarity, overlap,
lcb-similarity, combos, ablation; all of them; or scratch, which trains from random
weights.
recover, recover_elsewhere and late are scripts of their own, each with its --help.
"""

import runpy
import sys

from imagepiece_jax.common import cache_dirs

if __name__ == "__main__" and "".join(sys.argv[1:2]) in (
    "recover",
    "recover_elsewhere",
    "late",
):
    script = sys.argv.pop(1)
    cache_dirs.keep_programs()  # before the script imports JAX
    # It ends the process; its flags and those below would collide.
    runpy.run_module(f"experiments.{script}", run_name="__main__", alter_sys=True)

from experiments import registry, settings
from imagepiece_jax import cli
from imagepiece_jax.errors import InputError

cli.define_config("a config file: of --weights that lack a config, of --small's runs")
WEIGHTS, DATA = cli.weights(), cli.data()
NORMALIZATION = cli.normalization()
cli.resize()
cli.limit()
cli.dtype("of the layers")
TIMING = cli.timing()
settings.define_flags(registry.SETTINGS)


def main(words):
    # They import JAX: after the flags.
    from experiments import runner
    from experiments.scratch import runs as scratch

    TIMING()
    (config, overrides), normalization = cli.config_or_base(), NORMALIZATION()
    if overrides is not None and not overrides:
        config = None
    common = settings.read_flags(settings.Common)
    names = registry.select(words, common)
    read = {name: registry.SETTINGS[name] for name in names}
    settings.check_flags(read.values(), registry.SETTINGS.values())
    read = {name: settings.read_flags(cls) for name, cls in read.items()}
    if names == [registry.SCRATCH]:
        typed = {"--config": config, "--mean": normalization}
        for flag, value in (typed | {"--weights": common.weights}).items():
            if value:
                problem = "is not read by scratch, which trains from random weights"
                allowed = "the flags of --help that name it"
                raise InputError(problem, field=flag, allowed=allowed)
        return scratch.run(read[registry.SCRATCH], cli.required(DATA), common)
    cli.required(DATA)
    if not common.runs:
        cli.required(WEIGHTS)
    runner.run(read, config, normalization, overrides)


if __name__ == "__main__":
    cli.run(main)
