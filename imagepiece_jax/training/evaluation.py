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
from imagepiece_jax.training.cluster.preemption import Interrupted
from imagepiece_jax.training.logging import AGREEMENT, accuracy_or_agreement
from imagepiece_jax.training.train_step import prepared_images

PICTURE = "tokens.png"  # in the run's folder
AUGMENTED = 8  # number of images of a batch to show
SMALLEST = 64  # images of fewer pixels a side are enlarged
WIDEST = 1200  # the most pixels of a picture's width
OF_A_PASS = ("images", "throughput")  # figures that all models of a pass share


class Evaluation:
    """Evaluates a `Run` between its steps.

    Test images without labels get the teacher's first classes as labels. Accuracy is
    then called agreement.

    The evaluation is compiled when the object is made, before there is anything to
    save.

    log: the run's RunLog
    request: the run's StopRequest
    """

    def __init__(self, run, log, request):
        plan = run.plan
        self._run = run
        self._plan = plan
        self._log = log
        self._request = request
        self._first = plan.data.evaluations[plan.config.eval.best_set]
        with request.ending_at_once():
            self._programs = self._compiled(plan.model, run.state.variables)
            images = self._first.source, self._first.transform
            self._samples = SampleImages(plan.config, plan.workdir, plan.model, *images)

    def _compiled(self, model, variables):
        """{whether images have labels: compiled evaluation of a batch}."""
        plan = self._plan
        programs = {}
        for labeled in {source.labeled for source in plan.data.eval_sets.values()}:
            teacher = None
            frozen = ()
            if not labeled:
                teacher = self._run.teacher.answers
                frozen = (self._run.frozen,)
            step = accuracy.model_step(model, plan.config.seed, teacher=teacher)
            step.compile(variables, self._first.empty(), *frozen)
            programs[labeled] = functools.partial(_evaluate, step, frozen)
        return programs

    def log_dense(self, variables):
        """Log the accuracy of the dense model that the run starts from.

        After a signal, nothing is logged.
        """
        variables = parallel.replicate(variables)
        with self._request.ending_at_once():
            programs = self._compiled(self._plan.dense, variables)
        with contextlib.suppress(Interrupted):
            for name in self._plan.data.evaluations:
                (figures,) = self._accuracy(programs, [variables], name)
                who = "the dense model as given has "
                self._log.evaluation("init", 0, figures, name, who)

    def after_step(self):
        """Evaluate the run; return its new Progress.

        After a signal it returns the Progress as it was.
        """
        run = self._run
        log = self._log
        log.flush()
        state = run.state
        models = [state.variables]
        if state.ema is not None:
            models.append(state.ema)
        by_set = {}
        try:
            for name in self._plan.data.length.due(run.step):
                by_set[name], *averages = self._accuracy(self._programs, models, name)
                for found in averages:
                    kept = {k: v for k, v in found.items() if k not in OF_A_PASS}
                    by_set[name] |= {f"ema_{k}": value for k, value in kept.items()}
        except Interrupted:
            return run.progress
        for name, figures in by_set.items():
            log.evaluation("eval", run.step, figures, name)
        if parallel.is_main():
            variables = parallel.on_first_device(state.variables)
            log.image("tokens", run.step, self._samples.tokens(variables))
        log.restart_clock()
        config = self._plan.config
        best_set = config.eval.best_set
        best_by = BEST_BY[config.best_by]
        if not self._plan.data.eval_sets[best_set].labeled:
            best_by = best_by.replace("acc", AGREEMENT)
        return run.progress.with_evaluation(run.step, by_set, best_set, best_by)

    def show_batch(self, batch):
        """Log some images of the batch of the run's step, as the model saw them."""
        pixels = self._samples.augmented(batch, self._run.step)
        self._log.image("augmented", self._run.step, pixels)

    def _accuracy(self, programs, models, name):
        """The figures of several models, by one pass over the set `name`."""
        data = self._plan.data
        labeled = data.eval_sets[name].labeled
        reader = data.read(data.evaluations[name])
        with contextlib.closing(reader):
            batches = self._request.until_requested(reader)
            results = accuracy.evaluate_each(programs[labeled], models, batches)
        return [accuracy_or_agreement(result.figures, labeled) for result in results]


def _evaluate(step, frozen, variables, batch):
    """The results of a step, whose last arguments are the teacher's variables."""
    return step(variables, batch, *frozen)


class SampleImages:
    """Pictures of a run: of augmented images, and of the tokens of test images.

    config.pictures test images are followed through the model; 0 makes no pictures. The
    images are read, and the program is compiled, when the object is made.
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
        """A picture, uint8 [H, W, 3], of some images of a batch; None: no pictures.

        All processes must call this, because mixing exchanges images between devices.

        batch: arrays [local devices, A, m, ...]
        step: number of the step that took the batch, from 1
        """
        if self._count == 0:
            return None
        before = parallel.replicate(np.int32(step - 1))
        return sheet(parallel.unreplicate(self._prepared(batch, before)))

    def tokens(self, variables):
        """A picture, uint8 [H, W, 3], of the tokens of test images; None: no pictures.

        The full picture is written to the run's folder, and a smaller one is returned.
        Blocks from a soft reduction on are left out, as its tokens hold a part of every
        patch. Only this process's first device is used.

        Raises RunError where it cannot be written.
        """
        if not self._decide:
            return None
        slots = self._decide(variables, jax.device_put(self._images))
        if not slots:
            return None
        images, grid = cut_to_patches(self._images, self._model.patch_size)
        # There are no slots from the first soft reduction on.
        stages = [*zip(self._blocks, jax.device_get(slots), strict=False)]
        maps = []
        for i in range(len(images)):
            maps.append([(f"block {block}", slot[i]) for block, slot in stages])
        path = self._workdir / PICTURE
        token_pictures.token_page(path, images, maps, grid, self._titles)
        with Image.open(path) as picture:
            picture = picture.convert("RGB")
            picture.thumbnail((WIDEST, 16 * WIDEST))
            return np.asarray(picture)


def sheet(images):
    """One picture of images in rows of up to four. [B, S, S, 3] -> [H, W, 3].

    Small images are enlarged, and empty places are white.
    """
    scale = math.ceil(SMALLEST / images.shape[1])
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    columns = min(4, len(images))
    missing = -len(images) % columns
    images = np.pad(images, [(0, missing), *[(0, 0)] * 3], constant_values=255)
    rows = [np.concatenate(row, 1) for row in np.split(images, len(images) // columns)]
    return np.concatenate(rows, axis=0)


def examples(source, transform, count):
    """(transformed images uint8 [B, H, W, 3], their titles) of a source.

    Up to `count` readable images are taken, spread over the source, which is often
    sorted by class.
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
    """The slots of patches after each reduction before the first soft one."""
    _, grid = cut_to_patches(images, model.patch_size)
    images = normalize(images, model.mean, model.std)
    results = model.apply(variables, images).results
    _, *slots = patch_slots(results, len(images), math.prod(grid))
    return [slot for slot in slots if slot is not None]
