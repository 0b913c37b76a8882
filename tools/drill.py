"""Commands that signals end at random moments, and two processes that train as one.

    python -m tools.drill [--only recover export] [--each 2] [--seed 0]

Each command runs undisturbed, and then repeatedly with a signal at a random moment. The
signal must end it with the signal's status and one line; SIGKILL, and any signal while
training compiles, end it without a line. No file is half-written then: a command that
cannot go on leaves nothing or all. Given again, the command leaves the undisturbed
result, to the last bit. Models are tiny, every run is a process with a printed row, and
status 1 says that a row is wrong.
"""

import contextlib
import dataclasses
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image

import imagepiece_jax
from imagepiece_jax import cli
from imagepiece_jax.common import checksums, signals
from imagepiece_jax.common.checks import check_choice
from imagepiece_jax.errors import InputError, RunError
from imagepiece_jax.models import registry
from imagepiece_jax.models.variables import variable_shapes
from imagepiece_jax.training.logging import CLOCKED_METRICS, read_metrics
from imagepiece_jax.weights.run_files import CHECKPOINT_KINDS

ROOT = pathlib.Path(__file__).resolve().parent.parent
PATIENCE = 900.0  # seconds for anything that a run should do, on a busy machine
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
LOSSES_APART = 5e-4  # of two processes and one: sums in another order
QUICK = "--xla_backend_optimization_level=0"  # compiles quickly, not well
CRASHED = "Traceback|Fatal|ignored in|Segmentation"  # words that no command may print
ENDED = "interrupted|terminated|stopped"  # how the line on a signal begins
# Parts of files that come from a clock or a working tree.
CLOCK = rb'"seconds": [\d.]+|"(?:time|git)": "[^"]+"'
UNFINISHED = (".*.tmp", "*.orbax-checkpoint-tmp*")  # names of unfinished files

SIZE = {"image_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3}
SIZE |= {"num_heads": 3, "num_classes": 10}
# Of a run on the digits: with random draws, averages, batch statistics, a reduction.
FIELDS = {
    "model.depth": 1,
    "model.embed_dim": 16,
    "model.num_heads": 2,
    "model.patch_size": 4,
    "reduction": "imagepiece:merge_blocks=():prune_blocks=(0,)",
    "mixup": 0.8,
    "cutmix": 1.0,
    "epochs": 2,
    "batch_size": 112,  # of 1,438 training images: 12 steps an epoch
    "eval_batch_size": 24,  # many, so that a signal can arrive between two
    "warmup_epochs": 1.0,
    "eval_every_epochs": 1,
    "checkpoint_every_steps": 5,
    "log_every_steps": 1,
    "progress": False,
}
OF_RUN = " ".join(f"--config.{name}={value}" for name, value in FIELDS.items())
TRAIN = f"train.py --config=configs/quickstart.py {OF_RUN} --workdir=HERE/out"
OF_TWO = " --coordinator=127.0.0.1:PORT --num_processes=2 --process_id=NUMBER"
OURS = "-m imagepiece_jax"
DENSE = "INPUTS/weights"
# Behind the positional words of a command.
REDUCTION = "--reduction=evit:keep_rate=.3:blocks=(0,)"


class Command(NamedTuple):
    """A command; HERE stands for its run's folder, INPUTS for its inputs' folder."""

    words: str
    goes_on: bool = False  # after a stop; False: it leaves nothing or all
    processes: int = 1


COMMANDS = {
    "train": Command(TRAIN, goes_on=True),
    "train of two": Command(TRAIN + OF_TWO, goes_on=True, processes=2),
    "recover": Command(
        f"{OURS} recover {DENSE} digits {REDUCTION} --steps=40 --batch-size=8 "
        "--out=HERE/out"
    ),
    "features": Command(
        f"{OURS} features {DENSE} INPUTS/photographs {REDUCTION} --batch-size=8 "
        "--out=HERE/out.sqlite",
        True,
    ),
    "export": Command(f"{OURS} export {DENSE} HERE/model.onnx {REDUCTION}"),
    "compare": Command(
        f"{OURS} compare {DENSE} digits --limit=96 --reductions tome:r=2 tome:r=4 "
        "--out=HERE/out",
        True,
    ),
    "visualize": Command(
        f"{OURS} visualize {DENSE} INPUTS/photographs/00.png {REDUCTION} --out=HERE/out"
    ),
}


class Row(NamedTuple):
    """One run, and its result."""

    command: str
    fault: str
    statuses: list[int]  # of its processes
    left: str  # "nothing", "a part" or "all" of the undisturbed result
    said: str  # its last line
    passed: bool


class Run:
    """A run of a command in its own folder."""

    def __init__(self, inputs, name, fault):
        self.name = name
        self.command = COMMANDS[name]
        self.folder = inputs / f"{name}, {fault}"
        self.folder.mkdir()
        self.log = inputs / f"{name}, {fault}.log"
        self.processes = []
        self._inputs = inputs

    def start(self, devices=1):
        """Start or resume the run; all runs share compiled programs."""
        self.processes = []
        values = {"INPUTS": self._inputs, "HERE": self.folder, "PORT": free_port()}
        for number in range(self.command.processes):
            words = [sys.executable]
            for word in self.command.words.split():
                for name, value in (values | {"NUMBER": number}).items():
                    word = word.replace(name, str(value))
                words.append(word)
            with open(self.log, "a", encoding="utf-8") as log:
                process = subprocess.Popen(
                    words,
                    cwd=ROOT,
                    env=process_environment(self._inputs / "cache", devices),
                    stdout=log,
                    stderr=log,
                )
            self.processes.append(process)
        return self

    def wait_for_statuses(self):
        """Exit statuses after all processes have ended; 128 + n: by signal n."""
        deadline = time.monotonic() + PATIENCE
        statuses = []
        for process in self.processes:
            try:
                status = process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired as error:
                process.kill()
                raise RunError(f"a run hangs: {self.read_log()[-3000:]}") from error
            statuses.append(128 - status if status < 0 else status)
        return statuses

    def read_log(self):
        return self.log.read_text("utf-8")

    def last_line(self):
        """The last line of the log."""
        lines = self.read_log().strip().splitlines()
        return lines[-1].replace(str(self.folder), "HERE") if lines else ""

    def read_result(self):
        """The folder's files without times, {name: bytes}."""
        if "train.py" in self.command.words:
            return read_training_result(self.folder / "out")
        digests = {}
        for path in sorted(self.folder.rglob("*")):
            name = str(path.relative_to(self.folder))
            if path.suffix.startswith(".sqlite"):
                with contextlib.suppress(RunError):  # it has no rows yet
                    paths, vectors = imagepiece_jax.read_features(path)
                    digests[name] = (*paths, vectors.tobytes())
            elif path.is_file() and not path.name.startswith("."):
                digests[name] = re.sub(CLOCK, b"", path.read_bytes())
        return digests

    def unfinished_files(self):
        """Names of unfinished files."""
        names = []
        for pattern in UNFINISHED:
            names += [path.name for path in self.folder.rglob(pattern)]
        return names


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def process_environment(cache, devices=1):
    """The environment of a process with CPU devices, and a `cache` of its programs."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{QUICK} --xla_force_host_platform_device_count={devices}",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def read_training_result(workdir):
    """Checkpoints and lines of metrics of a run, without measured times."""
    if not workdir.exists():
        return {}
    content = {}
    for kind in CHECKPOINT_KINDS:
        with contextlib.suppress(InputError):  # there is none yet
            folder = workdir / "checkpoints" / kind
            arrays, _, _ = checksums.read_newest_step(folder, lambda _, table: table)
            for name, array in arrays.items():
                content[f"{kind}/{name}"] = (str(array.dtype), array.tobytes())
    lines = read_metrics(workdir)
    content["metrics"] = [
        {key: value for key, value in line.items() if key not in CLOCKED_METRICS}
        for line in lines
    ]
    return content


def write_inputs(folder):
    """Write photographs, and weights so large that a reduction changes the answers."""
    rng = np.random.default_rng(0)

    def drawn(path, leaf):
        mean = float(path[-1].key == "scale")
        return rng.normal(mean, 0.3, leaf.shape).astype(leaf.dtype)

    sizes = dict(SIZE)
    config = registry.model_config("vit_mini").at_size(sizes.pop("image_size"))
    config = dataclasses.replace(config, **sizes)
    model = imagepiece_jax.create_model(config)
    shapes = variable_shapes(model)
    variables = jax.tree_util.tree_map_with_path(drawn, shapes)
    imagepiece_jax.save(imagepiece_jax.Pretrained(model, variables), folder / "weights")
    (folder / "photographs").mkdir()
    side = SIZE["image_size"]
    for number in range(100):
        pixels = rng.integers(0, 256, (side, side, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "photographs" / f"{number:02}.png")


def drill_commands(folder, names, each, rng):
    """Yield all rows, each when its run has ended."""
    write_inputs(folder)
    for name in names:
        whole = Run(folder, name, "undisturbed")
        statuses = whole.start().wait_for_statuses()
        lines = whole.read_log().count("\n")
        expected = whole.read_result()
        passed = not any(statuses) and not whole.unfinished_files()
        yield Row(name, "none", statuses, "all", whole.last_line(), passed)
        if len(statuses) > 1:
            yield compare_losses(whole, Run(folder, "train", "two devices"))
        for number in range(each):
            for signum in SIGNALS:
                run = Run(folder, name, f"{signum.name} {number}")
                yield end_by_signal(
                    run, signum, int(rng.integers(lines)), expected, rng
                )
                yield run_again(run, expected)


def end_by_signal(run, signum, line, expected, rng):
    """A Row: a signal up to a second after the run has printed `line` lines."""
    run.start()
    target = int(rng.integers(len(run.processes)))
    process = run.processes[target]
    while process.poll() is None and run.read_log().count("\n") < line:
        time.sleep(0.005)
    while process.poll() is None and not handles_sigterm(process):
        time.sleep(0.005)
    delay = rng.uniform(0, 1)
    time.sleep(delay)
    process.send_signal(signum)
    statuses = run.wait_for_statuses()
    result = run.read_result()
    left = "a part"
    if not result:
        left = "nothing"
    elif result == expected:
        left = "all"
    passed = is_right(run, signum, target, statuses, left)
    fault = f"{signum.name} {delay:.2f} s after line {line}"
    return Row(run.name, fault, statuses, left, run.last_line(), passed)


def handles_sigterm(process):
    """Whether a process handles SIGTERM, by Linux; not so while Python starts."""
    with contextlib.suppress(OSError):  # it has just ended
        text = pathlib.Path(f"/proc/{process.pid}/status").read_text()
        caught = re.search(r"SigCgt:\s*(\w+)", text)
        return bool(caught and int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)
    return False


def is_right(run, signum, target, statuses, left):
    """Whether a run ended correctly after a signal to its process `target`."""
    others = statuses[:target] + statuses[target + 1 :]
    right = statuses[target] in (0, 128 + signum)
    # After one's end the others end with status 1, in a step or before it.
    right &= set(others) <= {0, 1, 128 + signum}
    if signum == signal.SIGKILL:
        right &= run.command.goes_on or left != "a part"
        return right
    right &= not re.search(CRASHED, run.read_log()) and not run.unfinished_files()
    at_once = run.processes and run.processes[target].returncode == -signum
    if statuses[target] and not (at_once and run.command.goes_on):
        right &= bool(re.search(rf"^({ENDED})", run.read_log(), re.MULTILINE))
    if left == "a part" and not run.command.goes_on:
        right &= is_best_so_far(run)
    return right


def is_best_so_far(run):
    """Whether `recover` saved a whole model of the weights so far at Ctrl-C."""
    if "the weights so far are kept" not in run.read_log():
        return False
    return imagepiece_jax.load(run.folder / "out").recovery is not None


def run_again(run, expected):
    """A Row: the same command once more, without a signal."""
    statuses = run.start().wait_for_statuses()
    is_same = run.read_result() == expected
    left = "all" if is_same else "DIFFERENT"
    passed = is_same and not any(statuses)
    return Row(run.name, "given again", statuses, left, run.last_line(), passed)


def compare_losses(two, one):
    """A Row: the losses of two processes, and of one process with two devices."""
    statuses = one.start(devices=2).wait_for_statuses()
    losses = []
    for run in (two, one):
        lines = run.read_result()["metrics"]
        losses.append([line["loss"] for line in lines if "loss" in line])
    apart = np.inf
    if len(losses[0]) == len(losses[1]):
        apart = np.abs(np.subtract(*losses)).max()
    message = f"{len(losses[0])} losses, at most {apart:.1e} apart"
    passed = apart < LOSSES_APART and not any(statuses)
    return Row(two.name, "one process, two devices", statuses, "all", message, passed)


def main(*, only: tuple[str, ...] = tuple(COMMANDS), each: int = 2, seed: int = 0):
    """Send signals to commands at random moments; a row for each.

    Args:
        only: These of the commands.
        each: Times that each signal is sent to each command.
        seed: Of the random moments.
    """
    jax.config.update("jax_platforms", "cpu")
    # A shell's `&` starts processes that ignore Ctrl-C, and so would ours.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in only:
        check_choice("only", name, COMMANDS)
    rng = np.random.default_rng(seed)
    passed = []
    with tempfile.TemporaryDirectory() as folder, signals.unfinished_path(folder):
        rows = drill_commands(pathlib.Path(folder), only, each, rng)
        for row in rows:
            verdict = "as it should be" if row.passed else "WRONG"
            print(*row[:-1], verdict, sep=" | ", flush=True)
            passed.append(row.passed)
    print(f"{sum(passed)} of {len(passed)} as it should be")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    cli.run_command(main)
