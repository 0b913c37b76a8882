"""A model's variants measured together, as a group of programs per batch size."""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence

from imagepiece_jax.benchmark.workloads import BenchmarkCase, Workload
from imagepiece_jax.common import device, timer
from imagepiece_jax.common.checks import check_range
from imagepiece_jax.common.files import git_revision, replace_file
from imagepiece_jax.common.progress import announced_work
from imagepiece_jax.common.tables import text_table
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.program import Program
from imagepiece_jax.reduction.reduction import DENSE_REDUCTION

# {column title: format of a row's field}
COLUMN_FORMATS = {
    "program": "{config}",
    "batch": "{batch_size}",
    "img/s": "{throughput:,.0f}",
    "lowest": "{throughput_min:,.0f}",
    "highest": "{throughput_max:,.0f}",
    "ms": "{ms:,.2f}",
    "x first": "{ratio:.3f}",
    "by MACs": "{mac_ratio:.3f}",
    "GMACs": "{gmacs:.3f}",
    "TMACs/s": "{tmacs_per_s:,.3f}",
    "GELU": "{gelu}",
    "MB": "{megabytes}",
}


def make_variants(
    vit: Pretrained, reductions: Sequence[str], own: str = "as it is"
) -> dict[str, Pretrained]:
    """A model's variants by name: dense, its own reduction, then `reductions`.

    own: name of the model's own reduction
    Raises InputError for a reduction that does not fit, or is repeated.
    """
    models = {"dense": vit.with_reduction(None)}
    if vit.reduction != DENSE_REDUCTION:
        models[own] = vit
    for text in reductions:
        if text in models:
            raise InputError(f"reductions has {text} twice")
        models[text] = vit.with_reduction(text, seed=0)  # values do not change the time
    return models


def make_case_groups(
    vits: Mapping[str, Pretrained | Program],
    batch_sizes: Iterable[int],
    dtype: str,
    mode: str,
    gelu: str | None = None,
) -> list[dict[str, BenchmarkCase]]:
    """Make Cases by name, in one group per batch size, largest first.

    vits: variants by name
    dtype, mode, gelu: as in `Case`
    Raises InputError for mistakes that show without compiling.
    """
    case_groups = []
    for batch_size in sorted({*batch_sizes}, reverse=True):
        check_range("batch_size", batch_size, 1, whole=True)
        group = {}
        for name, vit in vits.items():
            group[name] = BenchmarkCase(vit, mode, batch_size, dtype, gelu)
        case_groups.append(group)
    return case_groups


def time_groups(
    groups: Sequence[Mapping[str, BenchmarkCase]],
    rules: timer.Timing,
    file: str | None = None,
    others: Callable[[list[BenchmarkCase]], Mapping[str, Workload]] | None = None,
):
    """Measure and print every group. A group's programs take turns.

    file: for JSON lines, one per program, rewritten after every group
    others: function from a group's Cases to further programs to measure with them
    """
    first = next(iter(groups[0].values()))
    weights = "random weights" if first.path is None else f"weights of {first.path}"
    hardware = device.device_name()
    print(f"{hardware}, {first.dtype}, {weights}, random images", flush=True)
    libraries = [name for name in ("torch", "timm") if name in sys.modules]
    setting = {
        "mode": first.mode,
        "dtype": first.dtype,
        "weights": first.path,
        "device": device.device_name(),
        "versions": device.library_versions(libraries),
        "git": git_revision(),
        **dataclasses.asdict(rules),
    }
    lines = []
    for group in groups:
        cases = [*group.values()]
        programs = {name: case.workload() for name, case in group.items()}
        if others:
            programs.update(others(cases))
        jobs = {name: program.job for name, program in programs.items()}
        with announced_work(f"measuring {', '.join(jobs)}, in turns"):
            readings = timer.time_in_turns(jobs, rules)
        setting["batch_size"] = cases[0].batch_size
        group_rows = speed_rows(programs, readings, setting)
        print(f"\n{first.mode}\n{speed_table(group_rows)}", flush=True)
        lines += [json.dumps(row) + "\n" for row in group_rows]
        if file:
            replace_file(file, "".join(lines))


def speed_rows(
    programs: Mapping[str, Workload],
    readings: Mapping[str, Sequence[float]],
    setting: Mapping,
) -> list[dict]:
    """Make a row of JSON values per program.

    "ratio" is the speed relative to the first program, and "mac_ratio" the ratio
    predicted by MACs.

    programs: by name
    readings: seconds per call by name, from `timer.time_in_turns`
    setting: fields shared by all rows
    """
    rows_of_group = []
    first = next(iter(programs))
    for name, work in programs.items():
        figures = timer.speed_metrics(readings[first], readings[name], work.images)
        row = {
            "config": name,
            **figures,
            "mac_ratio": programs[first].macs / work.macs,
            "gmacs": work.macs / work.images / 1e9,
            "tmacs_per_s": work.macs / figures["ms"] / 1e9,
            **work.facts,
            **setting,
            "seconds_a_call": readings[name],
        }
        rows_of_group.append(row)
    return rows_of_group


def speed_table(rows: Iterable[Mapping]) -> str:
    """Align rows in columns for a terminal. Unknown bytes are a "-"."""
    cells = []
    for row in rows:
        size = row["peak_memory"]
        known = row | {"megabytes": f"{size / 1e6:,.0f}" if size else "-"}
        cells.append([form.format(**known) for form in COLUMN_FORMATS.values()])
    return text_table([[*COLUMN_FORMATS], *cells])
