"""Forms of a model measured together, a group of programs for each batch size."""

import contextlib
import dataclasses
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence

from imagepiece_jax.benchmark import device, report
from imagepiece_jax.benchmark.workloads import Case, Workload
from imagepiece_jax.common import timer
from imagepiece_jax.common.checks import check_range
from imagepiece_jax.common.files import git_revision
from imagepiece_jax.common.image_size import sides
from imagepiece_jax.common.progress import working
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.reduction.reduction import DENSE

# How libraries say that memory is full.
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "out of memory")


def forms(
    vit: Pretrained, reductions: Sequence[str], own: str = "as it is"
) -> dict[str, Pretrained]:
    """The forms of a model by name: dense first, its own reduction, and these.

    own: the name of its own reduction
    Raises InputError for a reduction that does not fit, or is there twice.
    """
    found = {"dense": vit.with_reduction(None)}
    if vit.reduction != DENSE:
        found[own] = vit
    for text in reductions:
        if text in found:
            raise InputError(f"reductions has {text} twice")
        found[text] = vit.with_reduction(text, seed=0)  # values change no time
    return found


def groups(
    vits: Mapping[str, Pretrained],
    batch_sizes: Iterable[int],
    dtype: str,
    mode: str,
    gelu: str | None = None,
) -> list[dict[str, Case]]:
    """Groups of Cases by name, one for each batch size, the largest first.

    The programs of a group are measured in turns.

    vits: the forms, by name
    dtype, mode, gelu: as for `Case`
    Raises InputError for mistakes that show without compiling.
    """
    found = []
    for batch_size in sorted({*batch_sizes}, reverse=True):
        check_range("batch_size", batch_size, 1, whole=True)
        group = {}
        for name, vit in vits.items():
            group[name] = Case.of(vit, mode, batch_size, dtype, gelu)
            pixels = math.prod(sides(vit.image_size))
            values = device.INPUTS * batch_size * pixels * 3
            _check_memory(name, batch_size, 4 * values)  # float32
        found.append(group)
    return found


def run(
    group: Mapping[str, Case],
    rules: timer.Rules,
    peaks: device.PeakRates,
    others: Callable[[list[Case]], Mapping[str, Workload]] | None = None,
) -> list[dict]:
    """Measure all programs of a group in turns; return their rows.

    others: makes further programs to measure with the Cases
    Raises InputError if they do not fit in memory.
    """
    programs = {}
    cases = [*group.values()]
    with _memory_errors(cases[0]):
        for name, case in group.items():
            programs[name] = case.workload()
            memory = programs[name].facts["peak_memory"]
            _check_memory(name, case.batch_size, memory or 0)
        if others:
            programs.update(others(cases))
        jobs = {name: program.job for name, program in programs.items()}
        with working(f"measuring {len(jobs)} programs in turns"):
            readings = timer.measure(jobs, rules)
    return report.rows(programs, readings, _setting(cases[0], rules, peaks))


def run_all(
    groups: Sequence[Mapping[str, Case]],
    rules: timer.Rules,
    files: report.Files,
    others: Callable[[list[Case]], Mapping[str, Workload]] | None = None,
):
    """Measure and print every group, writing `files` after each.

    others: as for `run`
    """
    first = next(iter(groups[0].values()))
    print(f"{device.name()}, {first.dtype}, {report.weights(first.path)}", flush=True)
    peaks = device.peak_rates(first.dtype, rules)
    print(report.peak_rates(peaks.matmul, peaks.copy), flush=True)
    for group in groups:
        rows = run(group, rules, peaks, others)
        print(f"\n{first.mode}\n{report.text(rows)}", flush=True)
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
    return InputError(f"batch_size is {batch_size}, for which {reason}")


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
