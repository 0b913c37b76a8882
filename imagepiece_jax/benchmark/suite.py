"""Who takes turns with whom, and does it fit? One group a batch size and mode."""

import contextlib
import dataclasses

from imagepiece_jax.benchmark import device, report, timer
from imagepiece_jax.benchmark.input_stream import Feeds
from imagepiece_jax.benchmark.workloads import INPUTS, Subject
from imagepiece_jax.common.files import git_revision
from imagepiece_jax.errors import InputError

MODES = ("inference", "copy", "end_to_end", "train")
FULL = ("RESOURCE_EXHAUSTED", "out of memory")  # how libraries say so


@dataclasses.dataclass(frozen=True)
class Group:
    """Configs at one batch size, in one mode."""

    configs: dict
    batch_size: int
    mode: str
    dtype: str

    def subjects(self, feeds=None):
        """{name: Subject}; `feeds` are what those that read files share."""
        return {
            name: Subject(config, self.batch_size, self.dtype, feeds)
            for name, config in self.configs.items()
        }


def modes(values, flag="mode"):
    """Return the modes that --`flag` lists; InputError for an unknown one or none."""
    if not values:
        raise InputError(f"--{flag} is empty; allowed are {', '.join(MODES)}")
    for mode in values:
        if mode not in MODES:
            raise InputError(f"--{flag} is {mode!r}; allowed are {', '.join(MODES)}")
    return values


def batch_sizes(texts):
    """["8,1", "2"] -> [8, 2, 1]: whole numbers from 1, each once, the largest first."""
    words = [word for text in texts for word in text.split(",")]
    for word in words:
        if not word.isdecimal() or int(word) < 1:
            raise InputError(
                f"--batch_size is {word!r}; allowed are whole numbers from 1, such as "
                "256 or 1,8,64"
            )
    return sorted(set(map(int, words)), reverse=True)


def groups(configs, batch_sizes, dtype, modes):
    """All groups, checked as far as that is possible without compiling.

    In the order of `batch_sizes`. InputError for what cannot be measured.
    """
    found = []
    for batch_size in batch_sizes:
        for mode in modes:
            group = Group(configs, batch_size, mode, dtype)
            for name, subject in group.subjects().items():
                try:
                    subject.check(mode)
                except InputError as error:
                    raise InputError(f"{name}: {error}") from error
                pixels = 4 * INPUTS * batch_size * subject.config.image_size**2 * 3
                _check_room(name, batch_size, pixels)
            found.append(group)
    return found


def run(group, against, rules, ceilings):
    """Rows of everything in `group`, of PyTorch `against` them too.

    InputError where it does not fit the memory.
    """
    made = {}
    with contextlib.closing(Feeds()) as feeds, _told(group):
        subjects = group.subjects(feeds)
        for name, subject in subjects.items():
            made[name] = subject.workload(group.mode)
            memory = made[name].facts["peak_memory"]
            _check_room(name, group.batch_size, memory or 0)
        if against:
            from imagepiece_jax.benchmark import torch_baselines

            made |= torch_baselines.workloads(
                against, list(subjects.values()), group.mode
            )
        readings = timer.measure({n: work.job for n, work in made.items()}, rules)
    return report.rows(made, readings, ceilings, _setting(group, against, rules))


def _setting(group, against, rules):
    libraries = ("torch", "timm") if against else ()
    return {
        "mode": group.mode,
        "batch_size": group.batch_size,
        "dtype": group.dtype,
        "device": device.name(),
        "versions": device.versions(libraries),
        "git": git_revision(),
        **dataclasses.asdict(rules),
    }


def _check_room(name, batch_size, needed):
    there = device.memory()
    if needed > there:
        raise InputError(
            f"--batch_size {batch_size} does not fit: {name} needs "
            f"{needed / 1e9:,.1f} GB, and {device.name()} has {there / 1e9:,.1f}; "
            "allowed are smaller ones"
        )


@contextlib.contextmanager
def _told(group):
    """What libraries say of a full memory becomes one sentence."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        full = isinstance(error, MemoryError)
        if not full and not any(word in str(error) for word in FULL):
            raise
        raise InputError(
            f"--batch_size {group.batch_size} does not fit the memory of "
            f"{device.name()} in mode {group.mode}; allowed are smaller ones"
        ) from error
