"""Reductions and int8 on a CPU: speed, accuracy, agreement of maps.

ONNX graphs of the dense model and of every method of --sweep are quantized as
docs/inference.md shows: by onnxruntime and, where NNCF is installed, by NNCF for
OpenVINO. Every fifth image calibrates, the others test. With --decoder graphs give the
tokens that are left, and maps are drawn of them; a dropped patch has the feature of the
token that stands nearest to it.
"""

import dataclasses
import functools
import importlib.util
import pathlib
import tempfile
import time

import numpy as np

from experiments import render
from experiments.dense_maps.maps import HeadMaps, cells, figures
from experiments.quantize import FILES, FLOAT, QUANTIZERS, RUNTIMES
from imagepiece_jax.benchmark import device
from imagepiece_jax.common import extras, timer
from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.evaluate import statistics
from imagepiece_jax.evaluate.cache import decode_bits, encode_bits
from imagepiece_jax.inference.onnx_model import onnx_model, write_onnx
from imagepiece_jax.reduction import settings

BATCHES, AT_ONCE = (1, 8), 8
BASES = ("dense", "float32")


def int8(context):
    """The dense model and every reduction of --sweep, float32 and int8; int8.md."""
    reductions = [settings.DENSE, *context.reductions]
    extras.check("int8", "onnxruntime")
    with tempfile.TemporaryDirectory() as folder:
        graphs = Graphs(context, reductions, pathlib.Path(folder))
        found = {entry: graphs.figures(*entry) for entry in graphs.entries}
        speeds = [graphs.speeds(batch) for batch in BATCHES]
    rows = []
    for number, (place, form) in enumerate(graphs.entries):
        runtime, weights = form
        row = {"method": f"`{settings.label(reductions[place])}`"}
        row |= {"runtime": runtime, "weights": weights}
        for batch, seconds in zip(BATCHES, speeds, strict=True):
            text = f"{batch / timer.spread(seconds[number]).median:.1f}"
            if number:
                times = timer.spread(timer.speedups(seconds[0], seconds[number]))
                text += f" ({times.median:.2f} [{times.low:.2f}, {times.high:.2f}])"
            row[f"batch {batch}"] = text
        rows.append(row | graphs.texts(found[place, form], found[place, FLOAT]))
    render.page(
        context,
        "int8",
        "reductions and int8",
        render.rows(rows),
        render.note(context),
        f"{sum(graphs.calibrates)} of the images calibrate, the others test. Images "
        "for each second that one thread computes; in brackets, times the first row of "
        f"the same turn (median, lowest and highest of {context.settings.repeats}); "
        f"{device.name()}.",
    )


class Graphs:
    """Graphs of one checkpoint by reduction, made when first one of them runs.

    reductions: the dense model first
    folder: of their files
    """

    def __init__(self, context, reductions, folder):
        self.context, self.weights = context, context.pretrained
        self.reductions, self.folder = reductions, folder
        draws = context.settings.decoder or not self.weights.model.num_classes
        self.maps = HeadMaps(context) if draws else None
        batches = [*context.images.batches()]
        self.pixels, self.labels = (
            np.concatenate([batch[name][batch["mask"] > 0] for batch in batches])
            for name in ("image", "label")
        )
        self.calibrates = np.arange(len(self.pixels)) % 5 == 0
        both = all(map(importlib.util.find_spec, ("nncf", "openvino")))
        forms = [form for form in FILES if both or form[0] == "onnxruntime"]
        self.quantizers = [QUANTIZERS[name] for name in dict(forms)]
        self.entries = [(p, form) for p in range(len(reductions)) for form in forms]
        # Programs are made once; so are figures of float32 graphs, which others are
        # compared with.
        self.program = functools.cache(self._program)
        self.floats = functools.cache(lambda place: self.tested(place, FLOAT))

    @functools.cached_property
    def _folders(self):
        """All float32 graphs: one that cannot be made is known before any figure."""
        folders = []
        for place, reduction in enumerate(self.reductions):
            vit = self.weights.with_reduction(reduction, self.weights.source.seed)
            tokens = vit.model.image_tokens if self.maps else None
            folder = self.folder / str(place)
            folder.mkdir()
            write_onnx(folder / FILES[FLOAT], onnx_model(vit, tokens=tokens))
            folders.append(folder)
        return folders

    def _program(self, place, form):
        """What gives the outputs of normalized images."""
        folder, (runtime, _) = self._folders[place], form
        path = folder / FILES[form]
        if not path.exists():
            QUANTIZERS[runtime](folder, self.images(self.calibrates))
        return RUNTIMES[runtime](path)

    def images(self, which):
        """Some images as graphs take them."""
        model = self.weights.model_with(settings.DENSE)
        return np.asarray(normalize(self.pixels[which], model.mean, model.std))

    def tested(self, place, form):
        """Classes [images] or maps [images, H, W] of the images that test."""
        run, parts = self.program(place, form), []
        (indices,) = np.nonzero(~self.calibrates)
        for start in range(0, len(indices), AT_ONCE):
            outputs = run(self.images(indices[start : start + AT_ONCE]))
            parts.append(self._drawn(*outputs) if self.maps else outputs[0].argmax(1))
        return np.concatenate(parts)

    def _drawn(self, tokens, size, source, coordinates):
        """Maps [B, H, W] of a TokenList."""
        return np.asarray(self.maps.decode(filled(tokens, source, coordinates)))

    def figures(self, place, form):
        """Figures of one graph, as JSON values."""

        def measured():
            own = self.floats(place)
            ours = own if form == FLOAT else self.tested(place, form)
            if self.maps:
                to_dense = figures(ours, self.floats(0))
                return to_dense | {"to_float32": figures(ours, own)}
            right = ours == self.labels[~self.calibrates]
            return {"right": encode_bits(right), "same": encode_bits(ours == own)}

        setting = self._setting(place) | {"runtime": form[0], "stored": form[1]}
        label = settings.label(self.reductions[place])
        what = f"{label}, {' '.join(form)}"
        return self.context.cache.result(setting, measured, what)

    def speeds(self, batch):
        """Seconds of a batch, a list of turns for each entry, all in turns."""
        rules = self.context.settings.rules

        def measured():
            images = np.resize(
                self.images(slice(batch)), (batch, *self.pixels.shape[1:])
            )
            runs = [self.program(*entry) for entry in self.entries]
            jobs = {
                number: timer.TimedCall(lambda _, run=run: run(images), lambda r: r)
                for number, run in enumerate(runs)
            }
            seconds = timer.measure(jobs, rules, now=time.process_time)
            return {"seconds": [*seconds.values()]}

        setting = self._setting(0) | dataclasses.asdict(rules)
        setting |= {"kind": "speed of int8", "batch_size": batch}
        setting |= {"device": device.name(), "reductions": self.reductions}
        what = f"speeds of batches of {batch}"
        return self.context.cache.result(setting, measured, what)["seconds"]

    def _setting(self, place):
        checkpoint = self.context.checkpoint(self.weights)
        return checkpoint.setting("int8", self.reductions[place]) | {
            "quantizers": [quantize.__name__ for quantize in self.quantizers],
            "decoder": self.maps and self.maps.digest,
        }

    def texts(self, found, floats):
        """{heading: text} of a graph's figures; floats: those of its method's first."""
        if self.maps:
            own = [None, None] if found is floats else cells(found["to_float32"])[:2]
            heads = [f"{n} to {base}" for base in BASES for n in ("correlation", "IoU")]
            return dict(zip(heads, [*cells(found)[:2], *own], strict=True))
        count = int(sum(~self.calibrates))
        right, same, base = (
            decode_bits(bits, count)
            for bits in (found["right"], found["same"], floats["right"])
        )
        change = statistics.paired_difference(right, base)
        own = {
            "to float32, points": statistics.format_difference(change),
            "same class as float32, %": f"{100 * same.mean():.1f}",
        }
        texts = {"acc1, %": statistics.format_estimate(statistics.accuracy(right))}
        return texts | (dict.fromkeys(own) if found is floats else own)


def filled(tokens, source, coordinates):
    """Features of all patches of a TokenList; a dropped one has its neighbor's.

    Its arrays [B, K, D], [B, h, w], [B, K, 2] -> [B, h, w, D]
    """
    batch, *grid = source.shape
    places = np.indices(grid).reshape(1, 2, -1, 1)
    apart = places - np.moveaxis(coordinates, 2, 1)[:, :, None]
    source = source.reshape(batch, -1)
    source = np.where(source < 0, (apart**2).sum(axis=1).argmin(axis=2), source)
    patches = np.take_along_axis(tokens, source[..., None], axis=1)
    return patches.reshape(batch, *grid, -1)
