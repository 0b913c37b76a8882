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
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

import jax
import numpy as np
from jaxtyping import PyTree

from imagepiece_jax.common import parallel
from imagepiece_jax.common.files import append_line, ignore_unsupported, replace_file
from imagepiece_jax.common.progress import duration_text
from imagepiece_jax.errors import InputError, RunError
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.training.data import RunLength

METRICS_FILE = "metrics.jsonl"
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
        self._event_writer: Any = None  # TensorBoard's writer
        if not parallel.is_main():
            return
        from tensorboardX import event_file_writer  # only where logged
        from tensorboardX.proto.event_pb2 import SessionLog  # pyrefly: ignore

        workdir = pathlib.Path(workdir)
        (workdir / "tensorboard").mkdir(parents=True, exist_ok=True)
        last_step = step or -1  # -1: a new run keeps no line
        # A killed run wrote later lines than its last checkpoint. Without them the file
        # equals an uninterrupted run's file.
        if (workdir / METRICS_FILE).exists():
            lines = read_metrics(workdir)
            kept_lines = [line for line in lines if line["step"] <= last_step]
            kept_text = "".join(json.dumps(line) + "\n" for line in kept_lines)
            replace_file(workdir / METRICS_FILE, kept_text)
        metrics_file = open(workdir / METRICS_FILE, "ab", buffering=0)
        self._metrics_file = self.enter_context(metrics_file)
        prefix = str(workdir / "tensorboard" / "events")
        self._event_writer = event_file_writer.EventsWriter(prefix)
        self.callback(self._close_events)
        # TensorBoard then hides a killed run's later steps.
        session_start = SessionLog(status=SessionLog.START)
        self._write_event(last_step + 1, session_log=session_start)

    def write_line(self, kind: str, step: int, **metrics: Any) -> None:
        """Write one line, and its finite numbers to TensorBoard as `kind/name`.

        kind: "train" or "eval"
        metrics: strings, None, or numbers (0-d arrays too); NaN and infinities become
            null
        Raises RunError if the line cannot be written.
        """
        if self._metrics_file is None:
            return
        json_metrics = {name: _as_json_scalar(x) for name, x in metrics.items()}
        line = {"kind": kind, "step": int(step), **json_metrics}
        # Unbuffered, and before the step's checkpoint: a kill between loses nothing.
        append_line(self._metrics_file, json.dumps(line, allow_nan=False))
        from tensorboardX.proto.summary_pb2 import Summary  # pyrefly: ignore

        scalars = []
        for name, value in json_metrics.items():
            if isinstance(value, int | float):
                scalars.append(Summary.Value(tag=f"{kind}/{name}", simple_value=value))
        self._write_event(int(step), summary=Summary(value=scalars))

    def _close_events(self) -> None:
        with ignore_unsupported():
            self._event_writer.close()

    def _write_event(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event  # pyrefly: ignore

        event = Event(wall_time=time.time(), step=step, **content)
        self._event_writer.write_event(event)
        with ignore_unsupported():  # it calls fsync at the end
            self._event_writer.flush()


def read_metrics(workdir: str | os.PathLike) -> list[dict]:
    """Read `workdir/metrics.jsonl` as dicts, in order; [] without the file.

    An unfinished last line is left out.
    Raises InputError for any other line without a JSON object and a step.
    """
    path = pathlib.Path(workdir) / METRICS_FILE
    if not path.exists():
        return []
    content = path.read_text(encoding="utf-8", errors="replace")
    text_lines = content.removesuffix("\n").split("\n")
    lines = []
    for line_number, text_line in enumerate(text_lines, start=1):
        try:
            line = json.loads(text_line)
        except json.JSONDecodeError:
            line = None
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
        elif line_number < len(text_lines):
            raise InputError(
                f"{path}: line {line_number} is {text_line[:40]!r}; it must be a JSON "
                "object with a step"
            )
    return lines


def _as_json_scalar(value: Any) -> Any:
    scalar = np.asarray(value).item()
    # JSON has no NaN and no infinity.
    if isinstance(scalar, float) and not np.isfinite(scalar):
        return None
    return scalar


TRACE_FOLDER = "profile"  # trace folder in the run's folder
TRACED_STEPS = range(10, 15)  # counted from this start: after compiling, and few


def print_line(line: str) -> None:
    """Print a line in the main process only."""
    # A lost terminal refuses lines, but the run goes on, or stops and saves.
    with contextlib.suppress(OSError):
        if parallel.is_main():
            print(line, flush=True)


class RunLog(contextlib.ExitStack):
    """A run's output; closing it closes files and trace.

    step: the step the run resumes from; 0: a new run
    find_saved_step: newest checkpoint's step or None, for an error message
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        config: RunConfig,
        length: RunLength,
        step: int,
        find_saved_step: Callable[[], int | None],
    ) -> None:
        super().__init__()
        self._trace_folder = pathlib.Path(workdir) / TRACE_FOLDER
        self._workdir = workdir
        self._config = config
        self._length = length
        self._find_saved_step = find_saved_step
        self._writer = self.enter_context(MetricWriter(workdir, step))
        first_traced = min(step + TRACED_STEPS.start, length.steps)
        last_traced = min(first_traced + len(TRACED_STEPS) - 1, length.steps)
        is_traced = config.profile and parallel.is_main()
        self._traced_steps = (first_traced, last_traced) if is_traced else (None, None)
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
        if step == self._traced_steps[0]:
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
        step, metrics = self._unwritten_metrics
        self._unwritten_metrics = None
        metrics = parallel.unreplicate(metrics)  # waits for their step
        first_traced, last_traced = self._traced_steps
        if step == last_traced:
            self._trace_context.close()
            print_line(
                f"trace of steps {first_traced} to {last_traced}: "
                f"{self._trace_folder} (TensorBoard, Perfetto)"
            )
        if metrics["skipped"] > self._config.max_skipped_steps:
            self._raise_non_finite(step, metrics)
        if step == self._untimed_step:
            self.restart_clock()
        else:
            self._num_timed_images += self._config.batch_size
        seconds = time.perf_counter() - self._start_time
        is_timed = self._num_timed_images > 0  # else only a first step was taken
        window_sums = metrics["window"]
        num_samples = window_sums["samples"] or math.nan  # 0: all steps were skipped
        metric_values = {
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
        is_last = step == self._length.steps
        if is_last or step % self._config.log_every_steps == 0:
            self._writer.write_line("train", step, **metric_values)
            if self._config.progress:
                self._print_progress(step, metric_values)
            self.restart_clock()

    def write_evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Write and print an evaluation after `step`."""
        epoch = step / self._length.steps_per_epoch
        self._writer.write_line("eval", step, epoch=epoch, **metrics)
        accuracy = f"validation accuracy {metrics['acc1']:.2f} %"
        loss = f"loss {metrics['loss']:.3f}"
        print_line(f"epoch {epoch:g}, step {step}: {accuracy}, {loss}")

    def _print_progress(self, step: int, metrics: dict) -> None:
        """Print a step's metrics, and the time left at this throughput."""
        num_images_left = (self._length.steps - step) * self._config.batch_size
        throughput = metrics["throughput"]
        line = f"step {step} of {self._length.steps}, epoch {metrics['epoch']:.2f}: "
        line += f"loss {metrics['loss']:.3f}, acc1 {metrics['acc1']:.1f} %, "
        line += f"lr {metrics['lr']:.2e}"
        if not math.isnan(throughput):
            wait_text = f"waits {100 * metrics['input_wait']:.0f} %"
            time_text = duration_text(num_images_left / throughput)
            line += f", {throughput:,.0f} img/s, {wait_text}, {time_text} left"
        if metrics["skipped"]:
            line += f", skipped {metrics['skipped']}"
        print_line(line)

    def _raise_non_finite(self, step: int, metrics: dict) -> NoReturn:
        """Raise RunError for a step with a non-finite loss or gradient."""
        metric_name = "grad_norm" if math.isfinite(metrics["loss"]) else "loss"
        saved_step = self._find_saved_step()
        num_skipped = int(metrics["skipped"])
        saved_clause = "none was saved"
        if saved_step:
            saved_clause = f"the checkpoint of step {saved_step} is kept"
        repeat_clause = ""
        if num_skipped > 1:
            repeat_clause = f", as in {num_skipped} steps in a row"
        raise RunError(
            f"{metric_name} is {metrics[metric_name]} at step {step}{repeat_clause}: "
            f"training stopped, {saved_clause} in {self._workdir}; try a lower lr, or "
            "clip_grad_norm=1.0"
        )


def measure_device_memory() -> dict[str, float]:
    """Peak memory of the fullest local device: {"device_memory": GB}, or {}."""
    # CPUs do not count their memory.
    stats = [device.memory_stats() or {} for device in parallel.local_devices()]
    peak_bytes = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
    return {"device_memory": max(peak_bytes) / 1e9} if peak_bytes else {}
