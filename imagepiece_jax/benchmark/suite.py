"""A model's variants measured together, as a group of programs per batch size."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from imagepiece_jax.benchmark.workloads import BenchmarkCase, Workload
from imagepiece_jax.common import device, timer
from imagepiece_jax.common.checks import check_range
from imagepiece_jax.common.files import git_revision, replace_file
from imagepiece_jax.common.progress import announced_work
from imagepiece_jax.common.tables import text_table
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.program import ExportedProgram
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
    pretrained: Pretrained, reductions: Sequence[str], own_name: str = "as it is"
) -> dict[str, Pretrained]:
    """A model's variants by name: dense, its own reduction, then `reductions`.

    Raises InputError for a reduction that does not fit, or is repeated.
    """
    variants = {"dense": pretrained.with_reduction(None)}
    if pretrained.reduction != DENSE_REDUCTION:
        variants[own_name] = pretrained
    for reduction_text in reductions:
        if reduction_text in variants:
            raise InputError(f"reductions has {reduction_text} twice")
        # Missing selectors are drawn: values do not change the time.
        variants[reduction_text] = pretrained.with_reduction(reduction_text, seed=0)
    return variants


def make_case_groups(
    variants: Mapping[str, Pretrained | ExportedProgram],
    batch_sizes: Iterable[int],
    dtype: str,
    mode: str,
    gelu: str | None = None,
) -> list[dict[str, BenchmarkCase]]:
    """Make cases by name, in one group per batch size, largest first.

    dtype, mode, gelu: as in `BenchmarkCase`
    Raises InputError for mistakes that show without compiling.
    """
    case_groups = []
    for batch_size in sorted({*batch_sizes}, reverse=True):
        check_range("batch_size", batch_size, 1, whole=True)
        cases = {}
        for name, variant in variants.items():
            cases[name] = BenchmarkCase(variant, mode, batch_size, dtype, gelu)
        case_groups.append(cases)
    return case_groups


def time_groups(
    case_groups: Sequence[Mapping[str, BenchmarkCase]],
    timing: timer.Timing,
    file: str | None = None,
) -> None:
    """Time and print every group. A group's programs take turns.

    file: for JSON lines, one per workload, rewritten after every group
    """
    first_case = next(iter(case_groups[0].values()))
    origin_path = first_case.variant.origin.path
    weights_path = str(origin_path) if origin_path else None  # None: random weights
    timing_columns = {
        "mode": first_case.mode,
        "dtype": first_case.dtype,
        "weights": weights_path,
        "device": device.device_name(),
        "versions": device.library_versions(),
        "git": git_revision(),
        **dataclasses.asdict(timing),
    }
    weights_text = f"weights of {weights_path}" if weights_path else "random weights"
    device_text = f"{timing_columns['device']}, {first_case.dtype}"
    print(f"{device_text}, {weights_text}, random images", flush=True)
    json_lines = []
    for cases in case_groups:
        workloads = {name: case.compile_workload() for name, case in cases.items()}
        timed_calls = {name: work.timed_call for name, work in workloads.items()}
        with announced_work(f"measuring {', '.join(timed_calls)}, in turns"):
            seconds_per_call = timer.time_in_turns(timed_calls, timing)
        batch_size = next(iter(cases.values())).batch_size
        shared_columns = timing_columns | {"batch_size": batch_size}
        rows = make_speed_rows(workloads, seconds_per_call, shared_columns)
        print(f"\n{first_case.mode}\n{format_speeds(rows)}", flush=True)
        json_lines += [json.dumps(row) + "\n" for row in rows]
        if file:
            replace_file(file, "".join(json_lines))


def make_speed_rows(
    workloads: Mapping[str, Workload],
    seconds_per_call: Mapping[str, Sequence[float]],
    shared_columns: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Make a row of JSON values per workload, whose name is its "config".

    "ratio" is the speed relative to the first workload, and "mac_ratio" the ratio
    predicted by MACs.

    seconds_per_call: by name and round, from `timer.time_in_turns`
    shared_columns: equal in all rows
    """
    rows = []
    first_name = next(iter(workloads))
    for name, workload in workloads.items():
        metrics = timer.speed_metrics(
            seconds_per_call[first_name], seconds_per_call[name], workload.num_images
        )
        row = {
            "config": name,
            **metrics,
            "mac_ratio": workloads[first_name].macs / workload.macs,
            "gmacs": workload.macs / workload.num_images / 1e9,
            # MACs a millisecond are 1e3 a second, and a tera is 1e12.
            "tmacs_per_s": workload.macs / metrics["ms"] / 1e9,
            **workload.columns,
            **shared_columns,
            "seconds_a_call": seconds_per_call[name],
        }
        rows.append(row)
    return rows


def format_speeds(rows: Iterable[Mapping[str, Any]]) -> str:
    """Align rows in columns for a terminal. Unknown bytes are a "-"."""
    cells = []
    for row in rows:
        num_bytes = row["peak_memory"]
        fields = {**row, "megabytes": f"{num_bytes / 1e6:,.0f}" if num_bytes else "-"}
        templates = COLUMN_FORMATS.values()
        cells.append([template.format(**fields) for template in templates])
    return text_table([[*COLUMN_FORMATS], *cells])
