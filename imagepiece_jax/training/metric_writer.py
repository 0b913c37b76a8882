"""The metrics of a run on disk: metrics.jsonl and TensorBoard.

`metrics.jsonl` in the run's folder holds one JSON object a line; TensorBoard gets the
same numbers, and images. Lines that a killed run wrote past the restored step are
removed, so that the file of a resumed run is that of an uninterrupted one. The curves
of TensorBoard may lack the last ten seconds before the kill.
"""

import contextlib
import json
import pathlib

import numpy as np

from imagepiece_jax.common.files import append_line, replace_file
from imagepiece_jax.errors import InputError

FILE = "metrics.jsonl"
# Read from clocks and meters: all else is equal when the same run is run again.
MEASURED = ("throughput", "input_wait", "device_memory")
# Events that may wait for TensorBoard's thread. It dies where the disk is full, and a
# full queue then blocks forever: long before that a line cannot be written.
QUEUE = 10_000


class MetricWriter:
    """Appends lines to `workdir/metrics.jsonl` and scalars to `workdir/tensorboard`.

    `restored_step` is the step that the run resumes from: later lines, which a killed
    run left behind, are cut, and so is an unfinished last line. None means that nothing
    was restored: every line goes. Where `is_main` is false nothing is written.
    """

    def __init__(self, workdir, restored_step=None, is_main=True):
        self._lines = self._scalars = None
        if not is_main:
            return
        from tensorboardX import SummaryWriter  # only where a run is logged

        workdir = pathlib.Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        last_kept = -1 if restored_step is None else restored_step
        _cut(workdir / FILE, last_kept)
        self._lines = open(workdir / FILE, "ab", buffering=0)
        self._scalars = SummaryWriter(
            str(workdir / "tensorboard"),
            purge_step=last_kept + 1,
            flush_secs=10,
            max_queue=QUEUE,
        )

    def write(self, kind, step, **values):
        """One line: `kind` ("train", "eval", ...), `step`, then `values` as given.

        Values are strings, None, or numbers (0-d arrays too); NaN and infinities become
        null. Finite numbers go to TensorBoard as `kind/name`. The line is on disk when
        this returns: write a step's lines before saving its checkpoint, else a kill
        between the two loses them.
        """
        if self._lines is None:
            return
        values = {name: _plain(value) for name, value in values.items()}
        line = {"kind": kind, "step": int(step), **values}
        append_line(self._lines, json.dumps(line, allow_nan=False))
        for name, value in values.items():
            if isinstance(value, int | float):
                self._scalars.add_scalar(f"{kind}/{name}", value, int(step))

    def write_image(self, name, step, pixels):
        """An image for TensorBoard, uint8 [H, W, 3]; None writes nothing."""
        if self._scalars is not None and pixels is not None:
            self._scalars.add_image(name, pixels, int(step), dataformats="HWC")

    def close(self):
        """Close both files; closing twice is allowed."""
        if self._lines is not None:
            self._lines.close()
            with contextlib.suppress(OSError):  # disk full: metrics.jsonl has all
                self._scalars.close()
            self._lines = self._scalars = None


def read_metrics(workdir):
    """The lines of `workdir/metrics.jsonl` as dicts, in order; [] where there is none.

    An unfinished last line is left out; any other line that is no JSON object with a
    step is an InputError.
    """
    return [line for _, line in _parse(pathlib.Path(workdir) / FILE)]


def _cut(path, last_kept):
    """Remove lines past step `last_kept`, and a torn last one, all at once."""
    if path.exists():
        kept = [text for text, line in _parse(path) if line["step"] <= last_kept]
        replace_file(path, "".join(text + "\n" for text in kept))


def _parse(path):
    """Pairs (text, dict) of a file's whole lines."""
    if not path.exists():
        return []
    texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    pairs = []
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
            whole = isinstance(line, dict) and isinstance(line.get("step"), int)
        except json.JSONDecodeError:
            whole = False
        if whole:
            pairs.append((text, line))
        elif number < len(texts):
            raise InputError(
                f"{path}, line {number}: found {text[:40]!r}, but every line must be a "
                "JSON object with an integer step; fix or remove the line"
            )
    return pairs


def _plain(value):
    if value is None or isinstance(value, str):
        return value
    value = np.asarray(value).item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
