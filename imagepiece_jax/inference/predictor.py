"""Predictions for images: the most probable classes of files, PIL images or arrays."""

import collections
import concurrent.futures
import functools
import itertools
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from imagepiece_jax.common.checks import check_range
from imagepiece_jax.common.machine import cores
from imagepiece_jax.common.warning import warn
from imagepiece_jax.data import class_names, pictures
from imagepiece_jax.data.decode import UnreadableImage
from imagepiece_jax.errors import InputError
from imagepiece_jax.inference.optimize import compiler
from imagepiece_jax.models.pretrained import Pretrained


class Prediction(NamedTuple):
    """A class that an image may show, and its probability."""

    label: str | int  # name of the class, or its index where classes have no names
    index: int  # index of the class in the model
    probability: float  # from 0 to 1; those of a multi-label model do not add up to 1


class Predictor:
    """A compiled classifier: called with images, it returns the most probable classes.

    Several threads may call it at once. It compiles a program for one image, for eight
    images and for `batch_size` images, each when it is first needed, or in `warm_up`.
    Fewer images are padded.

    vit: a model of `load`
    labels: a name for each class, or "imagenet" for ImageNet-1k's names; None: the
        model's own names (`class_names`), or indices
    top: number of classes to return; None: 5, or all if there are fewer
    batch_size: number of images that are computed at once
    threads: number of threads that decode images; None: one per core, at most 16
    dtype to compiler_options: as for `optimize`
    Raises InputError for an argument that does not fit.
    """

    def __init__(
        self,
        vit: Pretrained,
        *,
        labels: Sequence[str] | str | None = None,
        top: int | None = None,
        batch_size: int = 32,
        threads: int | None = None,
        dtype: str | None = None,
        gelu: str | None = None,
        attention: str = "auto",
        sizes: str | None = None,
        reductions: str | None = None,
        device: jax.Device | str | None = None,
        compiler_options: Mapping[str, Any] | None = None,
    ):
        classes = vit.model.config.num_classes
        self._labels = vit.class_names
        if labels == "imagenet":
            labels = class_names.imagenet_names()
        if labels is not None:
            self._labels = class_names.checked_names(labels, classes, "labels")
        self._top = top
        if top is None:
            self._top = min(5, classes)
        check_range("top", self._top, min(1, classes), classes, whole=True)
        # Of an untrained head `compiler` warns.
        if vit.has_projection and self._labels is None and not vit.untrained:
            warn(
                "the head has no bias, like CLIP's projection or a head that was not "
                "trained, so its outputs are no classes, and probabilities of them "
                "mean nothing; an embedding is "
                "vit.model.apply(vit.variables, images).logits",
            )
        if classes:
            vit.probabilities(np.zeros(classes))  # refuses a regression
        if threads is None:
            threads = min(16, cores())
        check_range("batch_size", batch_size, 1, whole=True)
        smaller = [size for size in (1, 8) if size < batch_size]
        self.sizes = (*smaller, batch_size)
        self._answer = self._most_probable if classes else np.array
        self._preprocessing = vit.preprocessing
        self._probabilities = vit.probabilities
        self._compile = compiler(
            vit,
            dtype=dtype,
            gelu=gelu,
            attention=attention,
            sizes=sizes,
            reductions=reductions,
            pixels=True,
            device=device,
            compiler_options=compiler_options,
        )
        self._programs = {}
        self._lock = threading.Lock()
        self._threads = concurrent.futures.ThreadPoolExecutor(
            threads, thread_name_prefix="decode"
        )

    @property
    def program(self):
        """The Program of a full batch."""
        return self._program(self.sizes[-1])

    def warm_up(self):
        """Compile the programs for all sizes now, and run each of them once."""
        for size in self.sizes:
            program = self._program(size)
            jax.block_until_ready(program(np.zeros(program.images.shape, np.uint8)))

    def __call__(self, images) -> list:
        """The most probable classes of one image, or of each of several.

        images: one image: the path of a file, a PIL image (both rotated by their EXIF
            orientation), or an array uint8 [H, W, 3]. Or several: an iterable of these,
            an array [B, H, W, 3], or a folder, which stands for all images in it and
            its sub-folders, in order of names
        Returns the `top` Predictions of an image; of a model without classes the pooled
            vector, [D] float32. For several images it returns a list of these.
        Raises InputError for anything that is not an image, and for one file that
            cannot be read. Among several, the error of such a file is in its place in
            the list.
        """
        images, is_one = pictures.listed(images)
        answers = list(self.stream(images))
        if not is_one:
            return answers
        if isinstance(answers[0], InputError):
            raise answers[0]
        return answers[0]

    def stream(self, images: Iterable) -> Iterator:
        """Yield the result of each image, in order.

        Images are computed in batches, and at most two batches are read ahead, so
        `images` may be endless.
        """
        images, _ = pictures.listed(images)
        decoded = self._decoded(images)
        while part := list(itertools.islice(decoded, self.sizes[-1])):
            results = [_result(future) for future in part]
            pixels = [each for each in results if isinstance(each, np.ndarray)]
            rows = iter(())
            if pixels:
                rows = iter(self._logits(pixels))
            for result in results:
                if isinstance(result, InputError):
                    yield result
                else:
                    yield self._answer(next(rows))

    def _program(self, size):
        with self._lock:
            if size not in self._programs:
                self._programs[size] = self._compile(size)
            return self._programs[size]

    def _logits(self, pixels):
        """Logits of at most a full batch of images. -> [b, classes]."""
        size = next(size for size in self.sizes if size >= len(pixels))
        program = self._program(size)
        with jax.transfer_guard_device_to_host("allow"):  # device_get takes 60 us more
            return np.asarray(program(np.stack(pixels)))

    def _decoded(self, images):
        """Yield a Future of the pixels of each image; threads read ahead."""
        waiting = collections.deque()
        for image in images:
            if not isinstance(image, pictures.PATH):
                # Read it now: its owner may change or close it later.
                image = pictures.rgb(image)
            crop = functools.partial(pictures.cropped, image, self._preprocessing)
            waiting.append(self._threads.submit(crop))
            if len(waiting) > self.sizes[-1]:
                yield waiting.popleft()
        yield from waiting

    def _most_probable(self, logits):
        """The `top` Predictions of an image with these logits [classes]."""
        probabilities = self._probabilities(logits)
        order = np.argsort(-logits, kind="stable")[: self._top]
        predictions = []
        for index in order.tolist():
            label = None
            if self._labels is not None:
                label = self._labels[index]
            if label is None:
                label = index
            predictions.append(Prediction(label, index, float(probabilities[index])))
        return predictions


def _result(future):
    """The pixels of an image, or the error of a file that cannot be read."""
    try:
        return future.result()
    except UnreadableImage as error:
        return error
