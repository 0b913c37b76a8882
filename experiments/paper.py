"""The paper's tables and figures: one command each, published beside measured.

python -m experiments table1 --data folder:PATH --weights FILE_OR_RUN
python -m experiments table1 --data ... --runs FOLDER_OF_TRAINED_RUNS
python -m experiments table1 --data ... --weights FILE --small

With --weights alone one checkpoint stands for every row, off the shelf; --runs takes
the runs that were trained with each reduction; --small fine-tunes the weights with each
of them, a few epochs and seeds. Results are cached: the same command resumes where it
was stopped.

NAME: table1, table2, hyperspeed, table3, masking, reassess, similarity, overlap,
lcb-similarity, combos, ablation; or all of them. Studies are scripts of their own, each
with its --help: python -m experiments recover, recover_elsewhere or late.
"""

from imagepiece_jax import cli
from imagepiece_jax.errors import InputError

cli.define_config("a config file: of --weights that lack a config, of --small's runs")
WEIGHTS = cli.weights()
DATA = cli.data()
NORMALIZATION = cli.normalization()
RESIZE = cli.resize()
LIMIT = cli.limit()
DTYPE = cli.dtype("of the layers")
TIMING = cli.timing()
RUNS = cli.text("runs", None, "a folder of trained runs, one a model")
SMALL = cli.switch("small", False, "fine-tune --weights for every model")
SEEDS = cli.listed("seeds", ["0", "1", "2"], "of --small's runs")
FOLDER = "runs/experiments"
OUT = cli.text("out", None, f"default: {FOLDER}")
AGAIN = cli.switch("again", False, "measure what was measured before, too")
BATCH = cli.integer("eval_batch_size", 100, "images at once", 1)
READERS = cli.integer("readers", 0, "processes that read images", 0)
SPEED = cli.switch("speed", True, "also measure speeds")
SPEED_BATCH = cli.integer("speed_batch_size", 64, "of speeds in tables", 1)
MOST_SEED = 2**32 - 1


def read_seeds(texts: list[str]) -> tuple[int, ...]:
    """Seeds, each once. Raises InputError for other texts, and for none."""
    if not texts or not all(map(is_seed, texts)):
        allowed = f"one or more whole numbers from 0 to {MOST_SEED}"
        raise InputError(field="--seeds", value=",".join(texts), allowed=allowed)
    return tuple(dict.fromkeys(map(int, texts)))


def is_seed(text: str) -> bool:
    return text.isascii() and text.isdecimal() and int(text) <= MOST_SEED


def main(words):
    # They import JAX: after the flags.
    from experiments import runner
    from experiments.context import Settings

    rules = TIMING()
    config, overrides = cli.config_or_base()
    normalization = NORMALIZATION()
    if overrides is not None and not overrides:
        config = None
    settings = Settings(
        weights=WEIGHTS.value,
        runs=RUNS.value,
        small=SMALL.value,
        seeds=read_seeds(SEEDS.value),
        data=DATA.value,
        resize=RESIZE.value,
        limit=LIMIT.value,
        out=OUT.value or FOLDER,
        again=AGAIN.value,
        eval_batch_size=BATCH.value,
        readers=READERS.value,
        dtype=DTYPE.value,
        speed=SPEED.value,
        speed_batch_size=SPEED_BATCH.value,
        rules=rules,
    )
    names = runner.selected(words, settings.small)
    if settings.runs and settings.small:
        problem = "is given with --small"
        raise InputError(
            problem, field="--runs", value=settings.runs, allowed="one of them"
        )
    cli.required(DATA)
    if not settings.runs:
        cli.required(WEIGHTS)
    runner.run(names, settings, config, normalization, overrides)


if __name__ == "__main__":
    cli.run(main)
