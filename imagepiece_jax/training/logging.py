"""A run's output: progress lines, metrics and a profiler trace.

All processes call the same functions, but only the main process prints and writes.
`metrics.jsonl` in the run's folder has one JSON object per line; TensorBoard gets the
same numbers. Nothing here changes the training.
"""

import contextlib
import json
import math
import os
import pathlib
import time
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from imagepiece_jax.common import files, parallel
from imagepiece_jax.common.progress import duration_text
from imagepiece_jax.errors import RunError
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.training.data import RunLength

METRICS_FILE = "metrics.jsonl"
TRACE_FOLDER = "profile"  # trace folder in the run's folder
TRACED_STEPS = range(10, 15)  # counted from this start: after compiling, and few
# Values from clocks and meters. A repeated run has equal values everywhere else.
CLOCKED_METRICS = ("throughput", "input_wait", "device_memory")
# Figures in a step's line, besides the loss terms.
STEP_METRICS = ("kind", "step", "epoch", "loss", "acc1", "acc5")
STEP_METRICS += ("lr", "grad_norm", "skipped", *CLOCKED_METRICS)


class MetricWriter(contextlib.ExitStack):
    """Append lines to `workdir/metrics.jsonl` and scalars to `workdir/tensorboard`.

    Opening removes lines of later steps than `step`, and an incomplete last line.

    step: the step the run resumes from; 0: a new run, all lines are removed
    """

    def __init__(self, workdir: str | os.PathLike, step: int = 0) -> None:
        super().__init__()
        self._metrics_file = None  # the open metrics.jsonl
        if not parallel.is_main():
            return
        import tensorboardX  # only where logged

        path = pathlib.Path(workdir) / METRICS_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        # A killed run wrote later lines than its last checkpoint. Without them the file
        # equals an uninterrupted run's file.
        records = files.read_json_lines(path)
        # -1: a new run keeps no line, not even one of step 0.
        kept_records = [record for record in records if record["step"] <= (step or -1)]
        kept_lines = [json.dumps(record) + "\n" for record in kept_records]
        files.replace_file(path, "".join(kept_lines))
        # Buffered by line, and written before the step's checkpoint: a kill between
        # the two loses nothing.
        self._metrics_file = self.enter_context(open(path, "a", buffering=1))
        # TensorBoard hides a killed run's later steps by `purge_step`.
        folder = str(path.parent / "tensorboard")
        self._board = tensorboardX.SummaryWriter(folder, purge_step=step + 1)
        self.callback(self._board.close)

    def write_line(self, kind: str, step: int, **metrics: Any) -> None:
        """Write one line, and its finite numbers to TensorBoard as `kind/name`.

        kind: "train" or "eval"
        metrics: strings, None, or numbers (0-d arrays too); NaN and infinities become
            null
        """
        if self._metrics_file is None:
            return
        scalars = {}
        for name, value in metrics.items():
            scalar = np.asarray(value).item()
            # JSON has no NaN and no infinity.
            is_json = not isinstance(scalar, float) or math.isfinite(scalar)
            scalars[name] = scalar if is_json else None
        record = {"kind": kind, "step": int(step), **scalars}
        self._metrics_file.write(json.dumps(record, allow_nan=False) + "\n")
        for name, scalar in scalars.items():
            if isinstance(scalar, int | float):
                self._board.add_scalar(f"{kind}/{name}", scalar, int(step))


def print_line(line: str) -> None:
    """Print a line in the main process only."""
    if parallel.is_main():
        print(line, flush=True)


class RunLog(contextlib.ExitStack):
    """A run's output; closing it closes files and trace.

    step: the step the run resumes from; 0: a new run
    """

    def __init__(
        self, workdir: pathlib.Path, config: RunConfig, length: RunLength, step: int
    ) -> None:
        super().__init__()
        self._trace_folder = workdir / TRACE_FOLDER
        self._workdir = workdir
        self._config = config
        self._length = length
        self._writer = self.enter_context(MetricWriter(workdir, step))
        self._traced_steps = range(0)  # no step, because they count from 1
        if config.profile and parallel.is_main():
            # A short run traces its last step.
            first = min(step + TRACED_STEPS.start, length.steps)
            stop = min(first + len(TRACED_STEPS), length.steps + 1)
            self._traced_steps = range(first, stop)
        self._trace_context = self.enter_context(contextlib.ExitStack())
        self._unwritten_metrics = None  # (last step, its metrics), until `flush`
        self._untimed_step = step + 1  # a program's first step, which compiles
        self.restart_clock()

    def restart_clock(self) -> None:
        """Measure throughput from here on."""
        # Evaluation and compilation are not training.
        self._start_time = time.perf_counter()
        self._waited_seconds = 0.0
        self._num_timed_images = 0

    def begin_program(self, step: int) -> None:
        """Leave `step`, the first step of a new program, out of the throughput."""
        self.flush()
        self._untimed_step = step

    def timed_batches(self, batches: Iterable[dict]) -> Iterator[dict]:
        """Yield the batches; waiting for a batch counts as `input_wait`."""
        # The device works meanwhile, so reading costs at most `input_wait`.
        self.restart_clock()
        wait_start = time.perf_counter()
        for batch in batches:
            self._waited_seconds += time.perf_counter() - wait_start
            yield batch
            wait_start = time.perf_counter()

    def traced_step(self, step: int) -> contextlib.AbstractContextManager:
        """Context for dispatching `step`, with its number in the trace."""
        if step == self._traced_steps.start:
            self._trace_context.enter_context(jax.profiler.trace(self._trace_folder))
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def take_metrics(self, step: int, metrics: PyTree) -> None:
        """Take the metrics of `step`, and write the metrics of the step before."""
        # The device computes this step while the last metrics are fetched.
        self.flush()
        self._unwritten_metrics = step, metrics

    def flush(self) -> None:
        """Write the last metrics. Raises RunError after too many skipped steps."""
        if self._unwritten_metrics is None:
            return
        step, device_metrics = self._unwritten_metrics
        self._unwritten_metrics = None
        metrics = parallel.unreplicate(device_metrics)  # waits for their step
        if step == self._traced_steps.stop - 1:
            self._trace_context.close()
            trace_text = f"trace of steps {self._traced_steps.start} to {step}"
            print_line(f"{trace_text}: {self._trace_folder} (TensorBoard, Perfetto)")
        if metrics["skipped"] > self._config.max_skipped_steps:
            culprit = "grad_norm" if math.isfinite(metrics["loss"]) else "loss"
            raise RunError(
                f"{culprit} is {metrics[culprit]} at step {step}, the last of "
                f"{int(metrics['skipped'])} skipped; the checkpoints in "
                f"{self._workdir} are kept: try a lower lr, or clip_grad_norm=1.0"
            )
        if step == self._untimed_step:
            self.restart_clock()
        else:
            self._num_timed_images += self._config.batch_size
        if step % self._config.log_every_steps and step != self._length.steps:
            return
        seconds = time.perf_counter() - self._start_time
        is_timed = self._num_timed_images > 0  # else only a first step was taken
        window_sums = metrics["window"]
        num_samples = window_sums["samples"] or math.nan  # 0: all steps were skipped
        line_values = {
            "epoch": step / self._length.steps_per_epoch,
            "loss": window_sums["loss"] / num_samples,
            "acc1": 100 * window_sums["acc1"] / num_samples,
            "acc5": 100 * window_sums["acc5"] / num_samples,
            "lr": metrics["lr"],
            "grad_norm": metrics["grad_norm"],
            "skipped": int(window_sums["skipped"]),
            "throughput": self._num_timed_images / seconds if is_timed else math.nan,
            "input_wait": self._waited_seconds / seconds if is_timed else math.nan,
            **measure_device_memory(),
            **metrics["terms"],
        }
        self._writer.write_line("train", step, **line_values)
        if self._config.progress:
            self._print_progress(step, line_values)
        self.restart_clock()

    def write_evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Write and print an evaluation after `step`."""
        epoch = step / self._length.steps_per_epoch
        self._writer.write_line("eval", step, epoch=epoch, **metrics)
        accuracy = f"validation accuracy {metrics['acc1']:.2f} %"
        loss = f"loss {metrics['loss']:.3f}"
        print_line(f"epoch {epoch:g}, step {step}: {accuracy}, {loss}")

    def _print_progress(self, step, metrics):
        """Print a step's line, with the time that the run still takes."""
        line = f"step {step} of {self._length.steps}, epoch {metrics['epoch']:.2f}: "
        line += f"loss {metrics['loss']:.3f}, acc1 {metrics['acc1']:.1f} %, "
        line += f"lr {metrics['lr']:.2e}"
        throughput = metrics["throughput"]
        if not math.isnan(throughput):  # NaN: only a step that compiled was taken
            wait_text = f"waits {100 * metrics['input_wait']:.0f} %"
            num_images_left = (self._length.steps - step) * self._config.batch_size
            time_text = duration_text(num_images_left / throughput)
            line += f", {throughput:,.0f} img/s, {wait_text}, {time_text} left"
        if metrics["skipped"]:
            line += f", skipped {metrics['skipped']}"
        print_line(line)


def measure_device_memory() -> dict[str, float]:
    """Peak memory of the fullest local device: {"device_memory": GB}, or {}."""
    # CPUs do not count their memory.
    peak_bytes = 0
    for device in parallel.local_devices():
        memory_stats = device.memory_stats() or {}
        peak_bytes = max(peak_bytes, memory_stats.get("peak_bytes_in_use", 0))
    return {"device_memory": peak_bytes / 1e9} if peak_bytes else {}
