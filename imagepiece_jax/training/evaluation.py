"""The evaluations of a run: accuracy, and images for TensorBoard."""

import contextlib
import functools
import math

import jax
import numpy as np
from PIL import Image

from imagepiece_jax.common import parallel, token_pictures
from imagepiece_jax.common.image_size import cut_to_patches
from imagepiece_jax.config.run import BEST_BY
from imagepiece_jax.data.decode import UnreadableImage
from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.evaluate import accuracy
from imagepiece_jax.models.variables import variable_shapes
from imagepiece_jax.reduction.provenance import patch_slots
from imagepiece_jax.training.logging import AGREEMENT, named_figures
from imagepiece_jax.training.preemption import Interrupted
from imagepiece_jax.training.train_step import prepared_images

PICTURE = "tokens.png"  # in the run's folder
AUGMENTED = 8  # images of an augmented batch
SMALLEST = 64  # pixels: a side of a small image
WIDEST = 1200  # pixels: a panel's width
OF_A_PASS = ("images", "throughput")  # figures that averages share


class Evaluation:
    """Evaluates a `Run` between its steps.

    Test images without labels have the teacher's first classes for labels: what is
    measured by them is agreement, and called so.

    Its program is compiled at once, before there is anything to save; that of a batch
    of training images, with the first of them.

    log: its RunLog
    request: its StopRequest
    """

    def __init__(self, run, log, request):
        self._run = run
        self._log = log
        self._request = request
        self._first = run.data.evaluations[run.config.eval.best_set]
        with request.ending_at_once():
            self._programs = self._compiled(run.model, run.state.variables)
            images = self._first.source, self._first.transform
            self._samples = SampleImages(run.config, run.workdir, run.model, *images)

    def _compiled(self, model, variables):
        """Programs for a batch: {whether it has labels: program}."""
        run = self._run
        programs = {}
        for labeled in {source.labeled for source in run.data.eval_sets.values()}:
            teacher = None if labeled else run.teacher_model.answers
            step = accuracy.model_step(model, run.config.seed, teacher=teacher)
            frozen = () if labeled else (run.teacher,)
            step.compile(variables, self._first.empty(), *frozen)
            programs[labeled] = functools.partial(_with, step, frozen)
        return programs

    def log_dense(self, variables):
        """Log the accuracy of the dense model that the run starts from.

        After a signal, nothing is logged.
        """
        variables = parallel.replicate(variables)
        with self._request.ending_at_once():
            programs = self._compiled(self._run.config.create_dense(), variables)
        with contextlib.suppress(Interrupted):
            for name in self._run.data.evaluations:
                (figures,) = self._accuracy(programs, [variables], name)
                who = "the dense model as given has "
                self._log.evaluation("init", 0, figures, name, who)

    def after_step(self):
        """The run's Progress with its accuracy now; unchanged after a signal."""
        run = self._run
        log = self._log
        log.flush()
        state = run.state
        models = [state.variables]
        if state.ema is not None:
            models.append(state.ema)
        by_set = {}
        try:
            for name in run.data.length.due(run.step):
                by_set[name], *averages = self._accuracy(self._programs, models, name)
                for found in averages:
                    kept = {k: v for k, v in found.items() if k not in OF_A_PASS}
                    by_set[name] |= {f"ema_{k}": value for k, value in kept.items()}
        except Interrupted:
            return run.progress
        for name, figures in by_set.items():
            log.evaluation("eval", run.step, figures, name)
        if parallel.is_main():
            variables = parallel.unreplicate(state.variables)
            log.image("tokens", run.step, self._samples.tokens(variables))
        log.restart_clock()
        best_set = run.config.eval.best_set
        best_by = BEST_BY[run.config.best_by]
        if not run.data.eval_sets[best_set].labeled:
            best_by = best_by.replace("acc", AGREEMENT)
        return run.progress.with_evaluation(run.step, by_set, best_set, best_by)

    def show_batch(self, batch):
        """Log some images of the batch of the run's step, as the model saw them."""
        pixels = self._samples.augmented(batch, self._run.step)
        self._log.image("augmented", self._run.step, pixels)

    def _accuracy(self, programs, models, name):
        """The figures of each of `models`, by one pass over the set `name`."""
        data = self._run.data
        labeled = data.eval_sets[name].labeled
        reader = data.evaluations[name].batches(*data.readers)
        with contextlib.closing(reader):
            batches = self._request.until_requested(reader)
            results = accuracy.evaluate_each(programs[labeled], models, batches)
        return [named_figures(result.figures, labeled) for result in results]


def _with(step, frozen, variables, batch):
    return step(variables, batch, *frozen)


class SampleImages:
    """Sample images of one run: of a batch, and what becomes of the tokens.

    config.pictures test images are followed through `model`; 0 switches all images off.
    They are read, and the program is compiled, at once.
    """

    def __init__(self, config, workdir, model, source, transform):
        self._workdir = workdir
        self._count = config.pictures
        self._model = model.clone(axis_name=None)
        prepare = functools.partial(prepared_images, run=config, model=self._model)
        self._prepared = parallel.pmap(functools.partial(prepare, count=AUGMENTED))
        self._images, self._titles = examples(source, transform, config.pictures)
        self._blocks = [i for i, layer in enumerate(model.plan) if layer.counts]
        self._decide = None
        if self._titles and self._blocks and parallel.is_main():
            # A state has both collections, although a patch stem has no statistics.
            shapes = {"batch_stats": {}} | variable_shapes(model, config.image_size)
            # Held, because caches are emptied when the program of a step changes.
            lowered = _decide.lower(shapes, self._images, self._model)
            self._decide = lowered.compile()

    def augmented(self, batch, step):
        """Some images of `batch`, which is that of `step` (from 1), or None.

        [local devices, A, m, ...] -> uint8 [H, W, 3]. All processes must call this:
        mixing exchanges images between all devices.
        """
        if self._count == 0:
            return None
        before = parallel.replicate(np.int32(step - 1))
        return sheet(parallel.unreplicate(self._prepared(batch, before)))

    def tokens(self, variables):
        """Tokens of some test images after each reduction, uint8 [H, W, 3], or None.

        The full picture is written to the run's folder; a smaller one is returned.
        Blocks after a soft reduction, whose tokens hold a share of every patch, are
        left out. Only this process's first device is used.

        Raises RunError where it cannot be written.
        """
        slots = self._decide(variables, self._images) if self._decide else []
        if not slots:
            return None
        images, grid = cut_to_patches(self._images, self._model.patch_size)
        stages = [*zip(self._blocks, map(np.asarray, slots), strict=False)]
        maps = [
            [(f"block {block}", slot[i]) for block, slot in stages]
            for i in range(len(images))
        ]
        path = self._workdir / PICTURE
        token_pictures.token_page(path, images, maps, grid, self._titles)
        with Image.open(path) as picture:
            picture = picture.convert("RGB")
            picture.thumbnail((WIDEST, 16 * WIDEST))
            return np.asarray(picture)


def sheet(images):
    """Images side by side in rows of up to four: [B, S, S, 3] -> [H, W, 3].

    Small ones are enlarged; empty places are white.
    """
    scale = math.ceil(SMALLEST / images.shape[1])
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    columns = min(4, len(images))
    missing = -len(images) % columns
    images = np.pad(images, [(0, missing), *[(0, 0)] * 3], constant_values=255)
    rows = [np.concatenate(row, 1) for row in np.split(images, len(images) // columns)]
    return np.concatenate(rows, axis=0)


def examples(source, transform, count):
    """(uint8 [B, H, W, 3], titles) of up to `count` readable test images, transformed.

    They are spread over the split, which is often sorted by class.
    """
    count = min(count, len(source))
    images = []
    titles = []
    for i in range(count):
        try:
            image, label = source.read(i * len(source) // count)
        except UnreadableImage:
            continue
        images.append(transform(image))
        if label < 0:  # it has none
            titles.append(f"image {i + 1}")
            continue
        name = source.class_names and source.class_names[label]
        titles.append(name or f"label {label}")
    return np.array(images), titles


@functools.partial(jax.jit, static_argnames="model")
def _decide(variables, images, model):
    """The slots of patches after every reduction up to the first soft one."""
    _, grid = cut_to_patches(images, model.patch_size)
    images = normalize(images, model.mean, model.std)
    results = model.apply(variables, images).results
    _, *slots = patch_slots(results, len(images), math.prod(grid))
    return [slot for slot in slots if slot is not None]
