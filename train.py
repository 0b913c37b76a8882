"""Train a model: python train.py --config configs/deit_s_imagepiece.py

Any field of the config can be changed: --config.batch_size=256. The same command
resumes a run that was stopped, and so does python train.py --workdir FOLDER.
"""

import difflib
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Iterator
from logging import Formatter

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from configs import base
from imagepiece_jax import cli
from imagepiece_jax.errors import InputError
from imagepiece_jax.weights import folder_files

CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "a config file, such as configs/quickstart.py; --config.FIELD=VALUE changes a "
    "field; configs/deit_s.py:SIZE,REDUCTION takes both, as in deit_s.py:deit_ti,tome",
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "folder of the run; default: runs/NAME for configs/NAME.py"
)
DRY_RUN = flags.DEFINE_bool(
    "dry_run",
    False,
    "print tokens, cost and data in seconds, memory in minutes, and write nothing",
)
COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "several processes: HOST:PORT of the first; not needed under srun and mpirun",
)
NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "number of processes; 1: only this one"
)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "this process's number, from 0")


def parse_flags(argv: list[str]) -> list[str]:
    """Parse the flags; the words without them.

    A mistake ends the process with one sentence and the status 2.
    """
    try:
        check_fields(argv)
        words = flags.FLAGS(with_own_config(argv))
        if words[1:]:
            raise InputError(f"{words[1]!r} belongs to no flag")
        if CONFIG.value is None:
            raise InputError(
                "--config is missing; it is a file of configs, or --workdir is the "
                "folder of a run, which has one"
            )
        split_words(CONFIG.value)
        CONFIG.value.lock()  # an OSError where the file could not be read
        return words
    except SystemExit:  # absl ends --help with 1
        sys.exit(0)
    except OSError as error:  # config_flags says in its last line what the system said
        mistake = re.sub(r"^\[Errno \d+\] ", "", str(error).splitlines()[-1].strip())
        mistake += "; the configs are the files of the folder configs"
    except InputError as error:
        mistake = error
    except (flags.Error, AttributeError) as error:
        mistake = error_cause(error)
    except Exception as error:  # of a config file, which is Python
        line = traceback.extract_tb(error.__traceback__)[-1]
        mistake = f"{line.filename}, line {line.lineno}: {error!r}"
    print(f"error: {mistake}", file=sys.stderr)
    sys.exit(InputError.status)


def with_own_config(argv: list[str]) -> list[str]:
    """The words, with the config of the run that --workdir names where they have none.

    Raises InputError for a config.json of another version or program.
    """
    text = "\n".join(argv)  # a flag's value may be the next word
    workdir_flag = re.search(r"^--?workdir[=\n](.*)$", text, re.MULTILINE)
    if workdir_flag is None or re.search(r"^--?config([=\n]|$)", text, re.MULTILINE):
        return argv
    file = pathlib.Path(workdir_flag[1], "config.json")
    if not file.is_file():
        return argv
    folder_files.read_run_file(file)
    reader = pathlib.Path(__file__).resolve().parent / "configs" / "_run.py"
    return [argv[0], f"--config={reader}:{workdir_flag[1]}", *argv[1:]]


def split_words(config: ConfigDict) -> None:
    """Read names that were typed without quotes: (head,reducer) is one text to absl."""
    for name, _ in field_kinds(config):
        group, _, leaf = name.rpartition(".")
        options = config[group] if group else config
        value = options[leaf]
        if isinstance(value, tuple) and all(isinstance(word, str) for word in value):
            options[leaf] = tuple(re.findall(r"[^\s,()\[\]'\"]+", ",".join(value)))


# Names of fields elsewhere.
OTHER_NAMES = {"learning_rate": "lr", "wd": "weight_decay", "num_epochs": "epochs"}


def check_fields(argv: list[str]) -> None:
    """Raise InputError for a --config.FIELD that no config has."""
    kinds = dict(field_kinds(base.get_config()))
    for word in argv:
        flag = re.match(r"--?(?:no)?config\.([^=]*)", word)
        if flag is None or flag[1] in kinds:
            continue
        field = flag[1]
        leaves = {name.rpartition(".")[2]: name for name in kinds}
        similar_fields = difflib.get_close_matches(field, kinds, 1, cutoff=0.8)
        if field in OTHER_NAMES:
            similar_fields.append(OTHER_NAMES[field])
        for leaf in difflib.get_close_matches(field.rpartition(".")[2], leaves, 1):
            similar_fields.append(leaves[leaf])
        hint = "; imagepiece_jax/training/config.py has all fields"
        if similar_fields:
            hint = f"; did you mean config.{similar_fields[0]}?"
        raise InputError(f"config.{field} is not a field{hint}")


def field_kinds(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, type]]:
    """Yield (path, type) of every field of a config, "model.name" of a group's."""
    for name in config:
        if isinstance(config[name], ConfigDict):
            yield from field_kinds(config[name], f"{prefix}{name}.")
        else:
            yield prefix + name, config.get_type(name)


def error_cause(error: BaseException) -> str:
    """What config_flags or absl found, in a sentence; of a config file, what it raised.

    The first of a chain of exceptions has the words, without the others' tracebacks.
    """
    flag = re.match(r"flag --(config\.([^=]*))=(.*?): ", str(error), re.DOTALL)
    if flag:
        kind = dict(field_kinds(base.get_config()))[flag[2]].__name__
        return f"{flag[1]} is {flag[3]!r}; it must be of type {kind}"
    if isinstance(error, flags.Error) and "parsing config file" not in str(error):
        return str(error)
    while error.__context__ is not None:
        error = error.__context__
    reason = str(error.args[0]).partition(". Other fields present")[0]
    return f"the config file: {reason}"


def run_name(path: str) -> str:
    """A config's name: deit_ti_evit for configs/deit_s_evit.py:deit_ti.

    It is a folder's name, so tome:r=8 stands there as tome_r_8.
    """
    file, _, argument = path.partition(":")
    stem = pathlib.Path(file).stem
    argument = re.sub(r"[^\w.]+", "_", argument).strip("_")
    if not argument:
        return stem
    name, changed = re.subn("^deit_[a-z]+", argument, stem)
    if not changed:
        return f"{stem}_{argument}"
    return name


def train() -> None:
    """Train as the flags say."""
    if DRY_RUN.value:  # XLA warns of slow compilation, which the command has announced
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # They import JAX, which --help and a mistyped flag need not wait for.
    from imagepiece_jax.training import trainer
    from imagepiece_jax.training.cluster.job import joined_cluster
    from imagepiece_jax.training.config import RunConfig

    name = run_name(config_flags.get_config_filename(flags.FLAGS["config"]))
    workdir = WORKDIR.value or pathlib.Path("runs") / name
    config = RunConfig.from_config(CONFIG.value)
    with joined_cluster(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value):
        trainer.train_and_evaluate(config, workdir, DRY_RUN.value)


if __name__ == "__main__":
    # Libraries report each of their steps, and TFDS its first tries to find a data set.
    logging.set_verbosity(logging.FATAL)  # RunErrors say what Orbax logs
    logging.get_absl_handler().setFormatter(Formatter())  # as printed lines
    app.run(lambda words: cli.run_and_exit(train), flags_parser=parse_flags)
