"""Configs measured together: one group per batch size and mode, taking turns."""

import contextlib
import dataclasses
import itertools
import math
import sys
from collections.abc import Sequence

from imagepiece_jax.benchmark import device, report
from imagepiece_jax.benchmark.workloads import MODES, Case, InputStreams
from imagepiece_jax.common import timer
from imagepiece_jax.common.files import git_revision
from imagepiece_jax.common.image_size import sides
from imagepiece_jax.common.progress import working
from imagepiece_jax.config.run import RunConfig
from imagepiece_jax.errors import InputError, inside, one_of, whole_numbers
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.reduction.reduction import DENSE, Reduction

# How libraries say that memory is full.
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "out of memory")


def modes(values: list[str]) -> list[str]:
    """The modes that --mode lists. Raises InputError for an unknown one or none."""
    for mode in values or [""]:
        one_of("mode", mode, MODES)
    return values


def batch_sizes(texts: list[str]) -> list[int]:
    """Batch sizes of --batch_size, the largest first: ["8,1", "2"] -> [8, 2, 1].

    Raises InputError for anything but whole numbers from 1.
    """
    words = ",".join(texts).split(",")
    return sorted(set(whole_numbers("batch_size", words)), reverse=True)


def beside_dense(config) -> dict:
    """A config's model, named by its reduction; {name: (config, None)}.

    Before a model with a reduction comes the same without it, "dense".
    """
    config = _with_tokens(config)
    pairs = {}
    if config.reduction != DENSE.name:
        pairs["dense"] = _with_reduction(config, DENSE), None
    pairs[_reduction(config).words] = config, None
    return pairs


def weights_beside_dense(vit: Pretrained) -> dict:
    """Weights, named by their reduction, as `beside_dense` names a config's model."""
    pairs = {}
    if vit.reduction != DENSE:
        pairs["dense"] = None, vit.with_reduction(None)
    pairs[vit.reduction.words] = None, vit
    return pairs


def swept(pairs: dict, reductions: Sequence[Reduction]) -> dict:
    """One model with each reduction of --sweep: {label: (config, Pretrained or None)}.

    The dense model comes first.

    pairs: as for `groups`; the last one is the model
    Raises InputError for a reduction that does not fit.
    """
    *_, (config, vit) = pairs.values()
    others = [each for each in reductions if each.name != DENSE.name]
    by_label = {}
    for reduction in [DENSE, *others]:
        with inside(place=f"sweep {reduction.text}"):
            if vit is None:
                changed = _with_reduction(config, reduction)
                RunConfig.from_config(changed).create_model()
                found = _reduction(_with_tokens(changed))
                pair = changed, None
            else:
                reduced = vit.with_reduction(reduction, seed=0)
                found = reduced.reduction
                pair = None, reduced
        named = found if reduction.is_open else reduction
        by_label[named.words] = pair
    return by_label


def _with_reduction(config, reduction):
    """A copy of a config with another reduction."""
    changed = config.copy_and_resolve_references()
    changed.reduction = str(reduction)
    return changed


def _reduction(config):
    """The reduction of a config."""
    return Reduction.read(config.reduction)


def groups(
    pairs: dict,
    batch_sizes,
    dtype: str,
    modes,
    forms: dict[str, str] | None = None,
    data: str | None = None,
) -> list[dict[str, Case]]:
    """Groups of Cases, each {name: Case}: one group for each batch size and mode.

    The programs of a group are measured in turns.

    pairs: {name: (config, None), with random weights, or (None, Pretrained)}
    forms, data: as for `Case`
    Raises InputError for mistakes that show without compiling.
    """
    settings = [*itertools.product(batch_sizes, modes)]
    listed = [{} for _ in settings]
    for name, (config, vit) in pairs.items():
        several = len(pairs) > 1 and config is not None  # not weights and dense
        with inside(place=f"config {name}" if several else ""):
            if config is not None:
                config = _with_tokens(config)
            for group, (batch_size, mode) in zip(listed, settings, strict=True):
                case = Case(config, mode, batch_size, dtype, vit, forms, data)
                case.check()
                group[name] = case
        for batch_size in batch_sizes:
            pixels = math.prod(sides(case.image_size))
            values = device.INPUTS * batch_size * pixels * 3
            _check_memory(name, batch_size, 4 * values)  # float32
    return listed


def _with_tokens(config):
    """A config whose reduction has counts of tokens instead of a cost."""
    run = RunConfig.from_config(config).with_counts()
    found = config.copy_and_resolve_references()
    found.reduction = str(run.reduction)
    return found


def run(group: dict[str, Case], rules, peaks, others=None) -> list[dict]:
    """Measure all programs of a group in turns; return their rows.

    rules: the timer's rules
    peaks: PeakRates of the device
    others: cases -> {name: Workload} of further programs to measure with them
    Raises InputError if they do not fit in memory.
    """
    programs = {}
    cases = [*group.values()]
    with InputStreams() as streams, _memory_errors(cases[0]):
        for name, case in group.items():
            programs[name] = case.workload(streams)
            memory = programs[name].facts["peak_memory"]
            _check_memory(name, case.batch_size, memory or 0)
        if others:
            programs.update(others(cases))
        jobs = {name: program.job for name, program in programs.items()}
        with working(f"measuring {len(jobs)} programs in turns"):
            readings = timer.measure(jobs, rules)
    return report.rows(programs, readings, _setting(cases[0], rules, peaks))


def run_all(groups, rules, files, others=None):
    """Measure and print every group, writing `files` (report.Files) after each."""
    first = next(iter(groups[0].values()))
    weights = report.weights(first.path)
    print(f"{device.name()}, {first.dtype}, {weights}", flush=True)
    peaks = device.peak_rates(first.dtype, rules)
    print(report.peak_rates(peaks.matmul, peaks.copy), flush=True)
    for group in groups:
        rows = run(group, rules, peaks, others)
        print(f"\n{rows[0]['mode']}\n{report.text(rows)}", flush=True)
        if note := report.ceiling_note(rows):
            print(note, flush=True)
        files.add(rows)
    for sentence in report.break_even(files.rows):
        print(sentence)
    files.plot()


def _setting(case, rules, peaks):
    """The fields that all rows of a group share."""
    libraries = [name for name in ("torch", "timm") if name in sys.modules]
    return {
        "mode": case.mode,
        "batch_size": case.batch_size,
        "dtype": case.dtype,
        "weights": case.path,
        "device": device.name(),
        "versions": device.versions(libraries),
        "git": git_revision(),
        **dataclasses.asdict(rules),
        "matmul_ceiling": peaks.matmul,
        "copy_ceiling": peaks.copy,
    }


def _check_memory(name, batch_size, needed):
    """Raise InputError where a program needs more bytes than the device has."""
    available = device.memory()
    if needed > available:
        part = f"{needed / 1e9:,.1f} GB of the {available / 1e9:,.1f}"
        raise _too_large(batch_size, f"{name} needs {part} of {device.name()}")


def _too_large(batch_size, reason):
    """The InputError for a batch that does not fit in memory."""
    problem = f"is {batch_size}, for which {reason}"
    return InputError("batch_size", None, "smaller ones", problem=problem)


@contextlib.contextmanager
def _memory_errors(case):
    """Turn a library's out-of-memory error into one sentence."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        from_python = isinstance(error, MemoryError)
        if not from_python and not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        reason = f"the memory of {device.name()} is too small in mode {case.mode}"
        raise _too_large(case.batch_size, reason) from error
