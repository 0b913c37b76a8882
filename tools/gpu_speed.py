"""Settings of docs/comparison.md on this machine's GPU, in turns with the dense model.

    python -m tools.gpu_speed --size deit_s --times speeds.jsonl

Programs are what `optimize` makes of random weights, in bfloat16 with images on the
device. Ratios are to the dense model at 224 pixels, round by round, with the lowest and
highest of the turns. `python -m tools.torch_baselines` times PyTorch beside.
"""

import json

from imagepiece_jax import cli
from imagepiece_jax.benchmark import device
from imagepiece_jax.benchmark.workloads import on_noise, random_variables
from imagepiece_jax.common import timer, xla_options
from imagepiece_jax.common.files import check_writable
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.errors import one_of
from imagepiece_jax.inference.optimize import optimize
from imagepiece_jax.models.config import create_model
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.models.pretrained import Pretrained
from tools import onnx_speed
from tools.onnx_speed import SIDE, STAGES, TIMM

ON_CPUS = onnx_speed.MODELS
ATTENDED = {"name": "diffrate", "macs": 0.4}
BOTH = "192 pixels and 3 blocks .5"
MODELS = {name: fields for name, fields in ON_CPUS.items() if "stem" not in name} | {
    "most attended at one share .4": ATTENDED | {"counts": "proportional-1"},
    "most attended in 3 blocks .4": ATTENDED | STAGES,
    BOTH: ON_CPUS["most attended in 3 blocks .5"],
}
SIDES = onnx_speed.SIDES | {BOTH: 192}
SIZE = cli.choice("size", "deit_s", list(TIMM), "of the models")
BATCH = cli.integer("batch", None, "images in a call; default: 256", 1)
DTYPE = cli.dtype("of weights and layers")
CHOSEN = cli.listed("models", None, "names of the table, beside dense; default: all")
TIMING = cli.timing()
TIMES = cli.text("times", None, "a file to which a line per program is added")


def main():
    file = cli.required(TIMES)
    check_writable("--times", file)
    names = CHOSEN.value or list(MODELS)
    for name in names:
        one_of("--models", name, MODELS)
    dtype = DTYPE.value or xla_options.fast_dtype()
    rows = measure(["dense", *names], dtype, TIMING())
    with open(file, "a") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)
    batch = rows[0]["batch"]
    print(f"{device.name()}, {SIZE.value}, {dtype}, batches of {batch}")
    print(table(rows))


def measure(names, dtype, rules):
    """Rows of programs, which take turns."""
    size = SIZE.value
    batch = BATCH.value or 256
    programs = {}
    for name in dict.fromkeys(names):
        side = SIDES.get(name, SIDE)
        model = create_model(
            size, reduction=MODELS[name], stem="patch", image_size=side
        )
        vit = Pretrained(model, random_variables(model, side))
        program = optimize(vit, batch_size=batch, dtype=dtype)
        programs[name] = program
        seconds = program.compile_seconds
        print(f"{name}: compiled in {seconds:.0f} s", flush=True)
    jobs = {name: timer.TimedCall(on_noise(fast)) for name, fast in programs.items()}
    times = timer.measure(jobs, rules)
    dense = model_macs(programs["dense"].model, SIDE)
    rows = []
    for name, program in programs.items():
        side = SIDES.get(name, SIDE)
        seconds = times[name]
        rates = timer.spread([batch / second for second in seconds])
        ratios = timer.speedups(times["dense"], seconds)
        row = {"size": size, "batch": batch, "runtime": device.name(), "model": name}
        row |= {"rate": rates, "ratio": timer.spread(ratios)}
        row |= {"macs": dense / model_macs(program.model, side)}
        row |= {"reduction": MODELS[name], "image_size": side, "dtype": dtype}
        rows.append(row)
    return rows


def table(rows):
    """A line for each program."""
    lines = []
    for row in rows:
        median, low, high = row["ratio"]
        rate = f"{row['rate'][0]:.0f}"
        ratio = f"{median:.2f} [{low:.2f}, {high:.2f}]"
        lines.append([row["model"], rate, ratio, f"{row['macs']:.2f}"])
    head = ["model", "images/s", "times the dense", "by MACs"]
    return markdown_table(head, lines)


if __name__ == "__main__":
    cli.run(main, compiles=False)
