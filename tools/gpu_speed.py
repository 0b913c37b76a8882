"""Dense and reduced models on this device in turns, and timm's beside them.

    python -m tools.gpu_speed --cases deit_s --gelus exact tanh --times speeds.jsonl
    python -m tools.gpu_speed --cases vit_l --models half --at-once 256 8 1 \\
        --beside timm --times speeds.jsonl
    python -m tools.gpu_speed --show speeds.jsonl

Programs are `optimize`'s, of random weights, with images on the device. Programs of one
size and batch take turns, in every listed GELU, form of sizes and precision of
products, or else in `optimize`'s choice. Small batches are also timed one call at a
time, as latency. A line of the file has the seconds of every turn; --show compares the
programs of a run by them, turn by turn. --smoke makes tiny models of the same parts, to
try a command.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import json
import os
import time
from typing import Literal
from unittest import mock

import jax
import numpy as np

from imagepiece_jax import cli
from imagepiece_jax.benchmark.workloads import call_on_noise, draw_random_variables
from imagepiece_jax.common import device, timer, xla_options
from imagepiece_jax.common.checks import check_choice
from imagepiece_jax.common.files import check_writable, read_json_lines
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.errors import InputError
from imagepiece_jax.inference import size_direction
from imagepiece_jax.inference.optimize import ProgramOptions, make_program_compiler
from imagepiece_jax.models import registry
from imagepiece_jax.models.create import create_model
from imagepiece_jax.models.pretrained import Pretrained
from tools import onnx_speed
from tools.onnx_speed import SIDE, STAGES


@dataclasses.dataclass(frozen=True)
class Case:
    """A model that is timed, with reductions."""

    title: str
    name: str  # for `registry.model_config`
    side: int = SIDE  # of images, in pixels
    timm: str | None = None  # timm's name; None: the same

    def create(self, setting):
        """The ViT in one of MODELS."""
        config = registry.model_config(self.name).at_size(self.side_of(setting))
        if setting.endswith(CONV):
            config = dataclasses.replace(config, stem="conv")
        if OPTIONS.smoke:
            config = dataclasses.replace(config, **SMOKE)
        return create_model(config, MODELS[setting])

    def side_of(self, setting):
        """Pixels a side of the images in one of MODELS."""
        return SIDES.get(setting, self.side)


CASES = {
    "deit_ti": Case("DeiT-Ti", "deit_ti", timm=onnx_speed.TIMM["deit_ti"]),
    "deit_s": Case("DeiT-S", "deit_s", timm=onnx_speed.TIMM["deit_s"]),
    "vit_b": Case("ViT-B/16", "vit_base_patch16_224.augreg2_in21k_ft_in1k"),
    "vit_l": Case("ViT-L/16", "vit_large_patch16_224.augreg_in21k_ft_in1k"),
    "so400m": Case("So400m/14", "vit_so400m_patch14_siglip_224"),
    "so400m_384": Case("So400m/14, 384", "vit_so400m_patch14_siglip_384", 384),
    "clip_l": Case("CLIP-L/14, 336", "vit_large_patch14_clip_quickgelu_336", 336),
    "dinov3_l": Case("DINOv3-L/16, 512", "vit_large_patch16_dinov3.lvd1689m", 512),
}
DENSE = "dense"
CONV = "conv stem"  # ends the names of settings that have one
HALF = "half"  # of the MACs, by the model's recommended method
TOME_STAGES = "ToMe in 3 blocks .5"  # of So400m's 27
ATTENDED = "diffrate:macs=0.4"
BOTH = "192 pixels and 3 blocks .5"
# A comma is between names.
ON_CPUS = {k.replace(", ", " with "): v for k, v in onnx_speed.MODELS.items()}
MODELS = ON_CPUS | {
    "most attended at one share .4": f"{ATTENDED}:counts=proportional-1",
    "most attended in 3 blocks .4": f"{ATTENDED}:{STAGES}",
    BOTH: ON_CPUS["most attended in 3 blocks .5"],
    HALF: 0.5,
    TOME_STAGES: "tome:macs=0.5:counts=stages-7-14-21",
}
SIDES = onnx_speed.SIDES | {BOTH: 192}  # of DeiT's images, where they are smaller
# Settings with a faster form of their reductions.
HALVES = (HALF, "most attended in 3 blocks .5", TOME_STAGES)
FASTER = [name for name in MODELS if name in HALVES or "most attended" in name]
OURS = "imagepiece_jax"
SMOKE = {"embed_dim": 32, "num_heads": 2, "depth": 12}
QUICK = {"xla_backend_optimization_level": 0}
PRECISIONS = {"default": None, "highest": "highest"}  # of products; default: TF32
# Of timm's models, whose own GELU is exact, and the mode of torch.compile
ACTS = {"timm": {}, "timm-tanh": {"act_layer": "gelu_tanh"}, "timm-graphs": {}}
TORCH_MODES = {"timm-graphs": "reduce-overhead"}
SMALL_BATCH = 4  # the largest whose latency is timed


@dataclasses.dataclass(frozen=True)
class Options:
    """What is timed; comments are what --help prints."""

    cases: tuple[str, ...] = ("deit_s",)  # Models
    models: tuple[str, ...] = ()  # Settings beside dense; all of DeiT's without any
    at_once: tuple[int, ...] = (256,)  # Images in a call
    # Of weights and layers: bfloat16, and float32 on CPUs.
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    gelus: tuple[Literal["exact", "tanh"], ...] = ()  # Forms of GELU
    # How attention counts merges.
    size_forms: tuple[Literal["bias", "direction"], ...] = ()
    reduction_forms: tuple[Literal["exact", "fast"], ...] = ()  # How reductions compute
    precisions: tuple[str, ...] = ("default",)  # Of products
    beside: tuple[str, ...] = ()  # timm's models, under torch.compile
    warmup: int = timer.Timing.warmup  # Calls of each program that are not timed, first
    repeats: int = timer.Timing.repeats  # Rounds in which each is timed
    # That a program is timed in a round, at least.
    seconds: float = timer.Timing.seconds
    smoke: bool = False  # Tiny models


OPTIONS = Options()  # of this process


def main(options: Options, *, times: str | None = None, show: str | None = None):
    """Time dense and reduced models in turns, and timm's beside them.

    Args:
        times: A file to which a line per program is added.
        show: A file of such lines; prints their tables.
    """
    global OPTIONS
    OPTIONS = options
    if show:
        print(*all_tables(read_json_lines(show)).values(), sep="\n\n")
        return
    if not times:
        raise InputError("times is missing; name a file to which lines are added")
    check_writable("times", times, ["", ".json", ".jsonl"])
    allowed = {"cases": CASES, "models": MODELS, "precisions": PRECISIONS}
    allowed["beside"] = ACTS
    for name, choices in allowed.items():
        for value in getattr(options, name):
            check_choice(name, value, choices)
    if options.beside:
        # Leaves memory to PyTorch; before JAX's first use.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    dtype = options.dtype or xla_options.fast_dtype()
    rules = timer.Timing(options.warmup, options.repeats, options.seconds)
    common = {"runtime": device.device_name(), "dtype": dtype}
    common["versions"] = device.library_versions()
    common["run"] = time.strftime("%Y-%m-%d %H:%M:%S")
    common |= dataclasses.asdict(rules)
    for size in options.cases:
        for rows in measure_case(size, options.at_once, dtype, rules):
            with open(times, "a") as out:
                out.writelines(json.dumps(row | common) + "\n" for row in rows)
            print(group_table(rows), flush=True)


# Programs


@dataclasses.dataclass(frozen=True)
class Way:
    """A setting, and its ways to be compiled."""

    setting: str  # a name in MODELS
    gelu: str | None  # None: as `optimize` takes it
    sizes: str | None
    reductions: str | None
    precision: str


def list_ways(case):
    """All Ways that the flags list, the dense model's first."""
    of_deit = [name for name in MODELS if name not in (HALF, TOME_STAGES)]
    settings = OPTIONS.models or of_deit
    all_ways = []
    for name in dict.fromkeys([DENSE, *settings]):
        model = case.create(name)
        size_forms = OPTIONS.size_forms
        if not size_direction.has_sizes(model):
            size_forms = ()
        elif size_direction.refusal_reason(model):
            size_forms = [form for form in size_forms if form != "direction"]
        reductions = OPTIONS.reduction_forms if name in FASTER else ()
        # None: as `optimize` chooses
        forms = [kinds or [None] for kinds in (OPTIONS.gelus, size_forms, reductions)]
        for parts in itertools.product(*forms, OPTIONS.precisions):
            all_ways.append(Way(name, *parts))
    return all_ways


def measure_case(size, batches, dtype, rules):
    """Rows of a model's programs, batch by batch; a batch's programs take turns.

    All programs are compiled first, several at a time, because XLA tries a product's
    algorithms on the device one by one.
    """
    case = CASES[size]
    programs = all_compiled(case, batches, dtype, list_ways(case))
    for batch in batches:
        timed = []
        for (of_batch, way), program in programs.items():
            if of_batch == batch:
                timed.append(time_ours(case, way, program))
        timed += [time_timm(case, name, batch, dtype) for name in OPTIONS.beside]
        yield timed_rows(timed, {"size": size, "batch": batch}, rules)


def all_compiled(case, batches, dtype, all_ways):
    """The Program of each batch and Way."""
    parts = [*itertools.product(batches, all_ways)]
    patch = mock.patch.object(size_direction, "find_directions", random_directions)
    num_threads = max(1, device.available_cores() // 2)
    with patch, concurrent.futures.ThreadPoolExecutor(num_threads) as threads:
        make = functools.partial(make_compiler, case, dtype)
        compilers = dict(zip(all_ways, threads.map(make, all_ways), strict=True))
        programs = threads.map(functools.partial(compile_program, compilers), parts)
        return dict(zip(parts, programs, strict=True))


def timed_rows(programs, shared, rules):
    """Rows of one batch's programs, [(TimedCall, fields of its row)].

    shared: fields of all rows
    """
    latency = shared["batch"] <= SMALL_BATCH
    jobs = {}
    for number, (call, _) in enumerate(programs):
        jobs[number, "turns"] = call
        if latency:
            jobs[number, "latency"] = dataclasses.replace(call, ahead=0)
    times = timer.time_in_turns(jobs, rules)
    rows = []
    for number, (_, facts) in enumerate(programs):
        rows.append({**shared, **facts, "turns": times[number, "turns"]})
        rows[-1]["latency"] = times.get((number, "latency"))
    return with_ratios(rows)


def compile_program(compilers, part):
    """The Program of a batch and a Way."""
    batch, way = part
    with jax.default_matmul_precision(PRECISIONS[way.precision]):
        program = compilers[way](batch)
    seconds = program.compile_seconds
    print(f"{way.setting}, {batch}: compiled in {seconds:.0f} s", flush=True)
    return program


def time_ours(case, way, program):
    """(TimedCall, fields of its row) of a Program, with images on the device."""
    model = program.model
    facts = {"model": way.setting, "library": OURS, "reduction": MODELS[way.setting]}
    facts |= {"image_size": case.side_of(way.setting), "stem": model.config.stem}
    facts |= {"gelu": model.config.arch.gelu, "sizes": None}
    if size_direction.has_sizes(model):
        facts["sizes"] = model.execution.size_encoding
    facts |= {"precision": way.precision, "gmacs": program.gmacs}
    facts["compile_s"] = program.compile_seconds
    facts["reductions"] = program.reductions
    return timer.TimedCall(call_on_noise(program), jax.block_until_ready), facts


def make_compiler(case, dtype, way):
    """A function that compiles a program for a batch; all have the same weights."""
    model = case.create(way.setting)
    choices = {"gelu": way.gelu, "sizes": way.sizes, "reductions": way.reductions}
    choices["compiler_options"] = QUICK if OPTIONS.smoke else None
    vit = Pretrained(model, draw_random_variables(model))
    return make_program_compiler(vit, ProgramOptions(dtype=dtype, **choices))


def random_directions(vit):
    """Any directions; speeds do not depend on `size_direction.find_directions`."""
    model = vit.model
    shape = (model.depth, model.config.num_heads, model.config.head_dim)
    directions = np.random.default_rng(0).normal(size=shape)
    return np.float32(directions / np.linalg.norm(directions, axis=-1, keepdims=True))


def time_timm(case, name, batch, dtype):
    """(TimedCall, fields of its row) of timm's dense model; name: in ACTS."""
    import timm
    import torch

    side = case.side_of(DENSE)
    fields = ACTS[name] | {"img_size": side}
    if OPTIONS.smoke:
        fields |= SMOKE
    vit = timm.create_model(case.timm or case.name, **fields)
    torch_device = find_torch_device()
    dtype = getattr(torch, dtype)
    vit = vit.eval().to(torch_device, dtype)
    # All models' `forward` share the limit; beyond it torch runs them eager.
    torch._dynamo.config.recompile_limit = 1000
    run = torch.compile(vit, dynamic=False, mode=TORCH_MODES.get(name))
    draw = functools.partial(torch.randn, device=torch_device, dtype=dtype)
    images = [draw((batch, 3, side, side)) for _ in range(device.NUM_INPUTS)]

    def call(number):
        with torch.inference_mode():
            run(images[number % len(images)])
        if torch_device == "cpu":
            return None
        event = torch.cuda.Event()
        event.record()  # the event that ends the call
        return event

    began = time.perf_counter()
    wait_for_event(call(0))
    seconds = time.perf_counter() - began
    print(f"{name}: compiled in {seconds:.0f} s", flush=True)
    facts = {"model": DENSE, "library": name, "reduction": MODELS[DENSE]}
    facts |= {"image_size": side, "stem": "patch", "sizes": None}
    facts["gelu"] = "tanh" if ACTS[name] else "exact"
    facts |= {"precision": "default", "gmacs": None, "compile_s": seconds}
    return timer.TimedCall(call, wait_for_event), facts


def find_torch_device():
    """PyTorch's name of JAX's device; sets JAX's cores and precision."""
    import torch

    torch.set_num_threads(device.available_cores())
    torch.set_float32_matmul_precision("high")  # TF32 where available, as JAX
    name = "cpu" if jax.devices()[0].platform == "cpu" else "cuda"
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("PyTorch with CUDA is needed, but the installed finds no GPU")
    return name


def wait_for_event(event):
    if event is not None:  # on a CPU calls are synchronous
        event.synchronize()


def with_ratios(rows):
    """Rows with rates, and with ratios to the dense model."""
    rows = [dict(row) for row in rows]
    for row in rows:
        dense = find_dense_row(row, rows)
        rates = [row["batch"] / second for second in row["turns"]]
        row |= {"rate": timer.find_spread(rates), "ratio": speed_ratio(row, dense)}
        if row["gmacs"] is not None:
            row["macs"] = dense["gmacs"] / row["gmacs"]
    return rows


def find_dense_row(row, rows):
    """Our dense model of the row's precision, and of its GELU where there is one."""
    dense = None
    for candidate in rows:
        ours = candidate["model"] == DENSE and candidate["library"] == OURS
        if ours and candidate["precision"] == row["precision"]:
            if candidate["gelu"] == row["gelu"]:
                return candidate
            dense = dense or candidate
    return dense


def speed_ratio(row, other, field="turns"):
    """How many times as fast a row is as another one, turn by turn."""
    return timer.find_spread(timer.paired_speedups(other[field], row[field]))


# Tables


def group_turns(rows):
    """The rows that took turns, by (device, size, batch, run)."""
    by_key = collections.defaultdict(list)
    for row in rows:
        by_key[row["runtime"], row["size"], row["batch"], row["run"]].append(row)
    return by_key


def all_tables(rows):
    """All tables of rows by name, without empty ones."""
    texts = {}
    for (runtime, size, batch, run), group in group_turns(rows).items():
        title = f"{CASES[size].title}, {runtime}, batches of {batch}, {run}"
        texts[title] = f"{title}\n\n{group_table(group)}"
    for name, make_table in (("timm", timm_table), ("growth", growth_table)):
        if text := make_table(rows):
            texts[name] = text
    return texts


def group_table(rows):
    """A line for each program of a group."""
    lines = []
    for row in rows:
        name = row["model"] if row["library"] == OURS else row["library"]
        name += ", fast" if row.get("reductions") == "fast" else ""
        line = [name, row["gelu"], row["sizes"] or "", row["precision"]]
        line += [f"{row['rate'][0]:,.0f}", format_spread(row["ratio"])]
        line.append(f"{row['macs']:.2f}" if "macs" in row else "")
        latency = row["latency"]
        line.append(f"{1e3 * timer.find_spread(latency).median:.2f}" if latency else "")
        lines.append(line)
    head = ["model", "GELU", "sizes", "products", "images/s", "times the dense"]
    return markdown_table([*head, "by MACs", "one call, ms"], lines)


def timm_table(rows):
    """Our dense models beside timm's of either GELU."""
    lines = []
    for (_, size, batch, _), group in group_turns(rows).items():
        baselines = {row["library"]: row for row in group if row["library"] != OURS}
        for row in group:
            if row["model"] == DENSE and row["library"] == OURS and baselines:
                line = [CASES[size].title, batch, row["gelu"]]
                for name in ACTS:
                    timm_row = baselines.get(name)
                    ratio = timm_row and format_spread(speed_ratio(row, timm_row))
                    line.append(ratio or "")
                lines.append(line)
    head = ["model", "batch", "our GELU", *(f"times {name}" for name in ACTS)]
    return lines and markdown_table(head, lines)


def growth_table(rows):
    """Throughput and latency at half of the MACs, by model and batch.

    A program's later run counts.
    """
    lines = {}
    for (_, size, batch, _), group in group_turns(rows).items():
        for row in group:
            if row["model"] not in HALVES:
                continue
            dense = find_dense_row(row, group)
            form = [row["gelu"], row["sizes"] or "", row.get("reductions", "exact")]
            line = [CASES[size].title, batch, row["model"], *form]
            line += [f"{side['rate'][0]:,.0f}" for side in (dense, row)]
            line += [format_spread(row["ratio"]), f"{row['macs']:.2f}"]
            if row["latency"]:
                pair = [timer.find_spread(side["latency"]) for side in (dense, row)]
                line += [f"{1e3 * side.median:.2f}" for side in pair]
                line.append(format_spread(speed_ratio(row, dense, "latency")))
            else:
                line += ["", "", ""]
            lines[size, batch, row["model"], *form] = line
    order = [*CASES]
    keys = sorted(lines, key=lambda key: (order.index(key[0]), -key[1]))
    head = ["model", "batch", "setting", "GELU", "sizes", "reductions"]
    head += ["dense, images/s", "half, images/s"]
    head += ["times the dense", "by MACs", "dense, one call, ms", "half, one call, ms"]
    head.append("times the dense")
    return lines and markdown_table(head, [lines[key] for key in keys])


def format_spread(spread):
    """ "1.45 [1.44, 1.46]": median, lowest and highest."""
    median, low, high = spread
    return f"{median:.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    cli.run_command(main)
