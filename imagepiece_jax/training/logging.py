"""The output of a run: progress, metrics, a profiler trace, and summaries.

Nothing here changes the training. All processes call the same functions, but only the
main process prints and writes.

`metrics.jsonl` in the run's folder has one JSON object in each line. TensorBoard gets
the same numbers. Lines that a killed run wrote after the step from which it
resumes are removed, so that the file is that of an uninterrupted run. TensorBoard may
lack the last ten seconds before a kill.
"""

import contextlib
import json
import math
import pathlib
import sys
import time
import types

import jax
import numpy as np
from tqdm import tqdm

from imagepiece_jax.common import parallel
from imagepiece_jax.common.files import append_line, replace_file
from imagepiece_jax.errors import InputError, RunError

FILE = "metrics.jsonl"
# Values from clocks and meters; all others are the same when a run is repeated.
MEASURED = ("throughput", "input_wait", "device_memory")
OPTIONAL = "optional"  # prefix of paths in tensorboardX that makes _OptionalFiles
QUEUE = 10_000  # events that may wait for TensorBoard's thread, if disks are slow
# What a line of a step has beside the terms of its loss.
FIGURES = ("kind", "step", "epoch", "loss", "acc1", "acc5")
FIGURES += ("lr", "grad_norm", "skipped", *MEASURED)


class _OptionalFile:
    """An unbuffered file that writes nothing more once writing has failed.

    Else tensorboardX's thread would end with a traceback, and the run would wait for
    it forever once its queue is full. metrics.jsonl has the same figures, and reports a
    full disk in one sentence.
    """

    def __init__(self, path):
        self._file = open(path.removeprefix(f"{OPTIONAL}:"), "wb", buffering=0)

    def write(self, data):
        try:
            if not self._file.closed:
                self._file.write(data)
        except OSError:
            self.close()

    def flush(self):
        """Do nothing."""

    def close(self):
        with contextlib.suppress(OSError):  # NFS reports a full disk only here
            self._file.close()


class MetricWriter(contextlib.ExitStack):
    """Appends lines to `workdir/metrics.jsonl` and scalars to `workdir/tensorboard`.

    Closing it closes both.

    step: the step from which the run resumes. Lines of later steps, which a killed run
        has written, are removed, and so is an incomplete last line. 0: the run starts,
        and all lines are removed
    is_main: whether anything is written
    """

    def __init__(self, workdir, step=0, is_main=True):
        super().__init__()
        self._lines = None  # the open metrics.jsonl
        self._scalars = None  # TensorBoard's SummaryWriter
        if not is_main:
            return
        from tensorboardX import SummaryWriter, record_writer  # only where logged

        workdir = pathlib.Path(workdir)
        (workdir / "tensorboard").mkdir(parents=True, exist_ok=True)
        last_step = step or -1
        if (workdir / FILE).exists():
            lines = read_metrics(workdir)
            before = [line for line in lines if line["step"] <= last_step]
            text = "".join(json.dumps(line) + "\n" for line in before)
            replace_file(workdir / FILE, text)
        self._lines = self.enter_context(open(workdir / FILE, "ab", buffering=0))
        files = types.SimpleNamespace(
            open=_OptionalFile, directory_check=lambda _: None
        )
        record_writer.register_writer_factory(OPTIONAL, files)
        scalars = SummaryWriter(
            f"{OPTIONAL}:{workdir / 'tensorboard'}",
            purge_step=last_step + 1,
            flush_secs=10,
            max_queue=QUEUE,
        )
        self._scalars = self.enter_context(scalars)

    def write_line(self, kind, step, **values):
        """Write one line, and its finite numbers to TensorBoard as `kind/name`.

        The line is on disk when this returns. A step's lines are written before its
        checkpoint, so that a kill between the two loses nothing.

        kind: "train", "eval", ...
        values: strings, None, or numbers (0-d arrays too); NaN and infinities become
            null
        Raises RunError where the line cannot be written.
        """
        if self._lines is None:
            return
        values = {name: _scalar(value) for name, value in values.items()}
        line = {"kind": kind, "step": int(step), **values}
        append_line(self._lines, json.dumps(line, allow_nan=False))
        for name, value in values.items():
            if isinstance(value, int | float):
                self._scalars.add_scalar(f"{kind}/{name}", value, int(step))


def read_metrics(workdir):
    """The lines of `workdir/metrics.jsonl` as dicts, in order; [] where there is none.

    An unfinished last line is left out.
    Raises InputError for any other line that is no JSON object with a step.
    """
    path = pathlib.Path(workdir) / FILE
    if not path.exists():
        return []
    texts = path.read_text(encoding="utf-8", errors="replace")
    texts = texts.removesuffix("\n").split("\n")
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
            valid = isinstance(line, dict) and isinstance(line.get("step"), int)
        except json.JSONDecodeError:
            valid = False
        if valid:
            lines.append(line)
        elif number < len(texts):
            raise InputError(
                f"{path}: line {number} is {text[:40]!r}; it must be a JSON object "
                "with a step"
            )
    return lines


def _scalar(value):
    value = np.asarray(value).item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


TRACE = "profile"  # folder of the trace in the run's folder
TRACED_STEPS = range(10, 15)  # counted from the start: after compiling, and few


def say(text):
    """Print a line once, however many processes there are, beside a progress bar."""
    if parallel.is_main():
        tqdm.write(text)
        sys.stdout.flush()


class RunLog(contextlib.ExitStack):
    """The output of one run; closing it closes files, bar and trace.

    With `config.progress` there is a bar with the time left where the output is a
    terminal; without a bar, a line whenever metrics are logged.

    step: the one that it resumes from, 0 where it starts
    last_saved: returns the step of the newest checkpoint, or None, for the message of a
        run that cannot continue
    """

    def __init__(self, workdir, config, length, step, last_saved):
        super().__init__()
        self._workdir = workdir
        self._config = config
        self._length = length
        self._last_saved = last_saved
        main = parallel.is_main()
        self._writer = self.enter_context(MetricWriter(workdir, step, main))
        wanted = config.progress and main
        bar = tqdm(
            total=length.steps,
            initial=step,
            disable=None if wanted else True,  # None: unless the output is a terminal
            unit="step",
            dynamic_ncols=True,
        )
        self._bar = self.enter_context(bar)
        self._prints_lines = main and self._bar.disable
        first = min(step + TRACED_STEPS.start, length.steps)
        last = min(first + len(TRACED_STEPS) - 1, length.steps)
        # The first and the last step of the trace.
        self._traced = (first, last) if config.profile and main else (None, None)
        self._trace = self.enter_context(contextlib.ExitStack())
        self._unwritten = None  # the last step and its metrics, until `flush`
        self._untimed = step + 1  # the step that is not timed, as its program is new
        self.restart_clock()

    def restart_clock(self):
        """Count img/s from here on: evaluation and compiles are not training."""
        self._began = time.perf_counter()
        self._waited = 0.0
        self._images = 0

    def compiles(self, step):
        """Do not time the next step, `step`: it is the first of its program."""
        self.flush()
        self._untimed = step

    def timed(self, batches):
        """The same batches; the time until each is there counts as `input_wait`.

        The device works meanwhile, so `input_wait` is an upper bound of what reading
        costs.
        """
        self.restart_clock()
        began = time.perf_counter()
        for batch in batches:
            self._waited += time.perf_counter() - began
            yield batch
            began = time.perf_counter()

    def dispatch(self, step):
        """A context for dispatching `step`, which a trace shows by its number."""
        if step == self._traced[0]:
            self._trace.enter_context(jax.profiler.trace(self._workdir / TRACE))
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def record(self, step, metrics):
        """Take the metrics of `step`; those of the step before are written now.

        So the device has the next step to compute while the last metrics are fetched.
        """
        self.flush()
        self._unwritten = step, metrics

    def flush(self):
        """Write the last metrics. Raises RunError after too many steps were skipped."""
        if self._unwritten is None:
            return
        step, metrics = self._unwritten
        self._unwritten = None
        metrics = parallel.unreplicate(metrics)
        if step == self._traced[1]:
            self._trace.close()
            steps = "steps {} to {}".format(*self._traced)
            say(f"trace of {steps}: {self._workdir / TRACE} (TensorBoard, Perfetto)")
        if metrics["skipped"] > self._config.max_skipped_steps:
            self._stop(step, metrics)
        if step == self._untimed:
            self.restart_clock()
        else:
            self._images += self._config.optim.batch_size
        seconds = time.perf_counter() - self._began
        timed = self._images > 0  # else a program's first step is all since then
        window = metrics["window"]
        samples = window["samples"] or math.nan  # none where all steps were skipped
        values = {
            "epoch": step / self._length.steps_per_epoch,
            "loss": window["loss"] / samples,
            "acc1": 100 * window["acc1"] / samples,
            "acc5": 100 * window["acc5"] / samples,
            "lr": metrics["lr"],
            "grad_norm": metrics["grad_norm"],
            "skipped": int(window["skipped"]),
            "throughput": self._images / seconds if timed else math.nan,
            "input_wait": self._waited / seconds if timed else math.nan,
            **device_memory(),
            **metrics["terms"],
        }
        self._bar.set_postfix_str(_in_short(values), refresh=False)
        self._bar.update(1)
        logged = step % self._config.log_every_steps == 0 or step == self._length.steps
        if logged:
            self._writer.write_line("train", step, **values)
            if self._prints_lines:
                self._print_line(step, values)
            self.restart_clock()

    def evaluation(self, step, figures):
        """Write and print an evaluation after `step`."""
        epoch = step / self._length.steps_per_epoch
        self._writer.write_line("eval", step, epoch=epoch, **figures)
        text = f"epoch {epoch:g}, step {step}: test accuracy {figures['acc1']:.2f} %"
        say(f"{text}, loss {figures['loss']:.3f}")

    def _print_line(self, step, values):
        images = (self._length.steps - step) * self._config.optim.batch_size
        rate = values["throughput"]
        rest = "?" if math.isnan(rate) else tqdm.format_interval(images / rate)
        say(
            f"step {step} of {self._length.steps}, epoch {values['epoch']:.2f}: "
            f"{_in_short(values)}, lr {values['lr']:.2e}, time left {rest}"
        )

    def _stop(self, step, metrics):
        """Raise RunError for a step whose loss or gradient is not finite."""
        name = "grad_norm" if math.isfinite(metrics["loss"]) else "loss"
        saved = self._last_saved()
        count = int(metrics["skipped"])
        where = "none was saved"
        if saved:
            where = f"the checkpoint of step {saved} is kept"
        row = ""
        if count > 1:
            row = f", as in {count} steps in a row"
        raise RunError(
            f"{name} is {metrics[name]} at step {step}{row}: training stopped, {where} "
            f"in {self._workdir}; try a lower lr, or clip_grad_norm=1.0"
        )


def device_memory():
    """{"device_memory": the most GB used so far on a device of this process}.

    It is {} where the platform does not count memory, as on CPUs.
    """
    stats = [device.memory_stats() or {} for device in parallel.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
    return {"device_memory": max(peaks) / 1e9} if peaks else {}


def _in_short(values):
    """The metrics of a step in a few words, for the bar and for printed lines."""
    text = f"loss {values['loss']:.3f} acc {values['acc1']:.1f}%"
    if not math.isnan(values["throughput"]):
        text += f" {values['throughput']:,.0f} img/s"
        text += f" wait {100 * values['input_wait']:.0f}%"
    if values["skipped"]:
        text += f" skipped {values['skipped']}"
    return text
