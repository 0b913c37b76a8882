"""Predict the most probable classes of image files, PIL images or arrays."""

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
from imagepiece_jax.common.machine import available_cores
from imagepiece_jax.data import class_names, pictures
from imagepiece_jax.data.decode import UnreadableImage
from imagepiece_jax.errors import InputError
from imagepiece_jax.inference.optimize import compiler
from imagepiece_jax.models.pretrained import Pretrained


class Prediction(NamedTuple):
    """A class and its probability."""

    label: str | int  # the class name, or `index` for a class without a name
    index: int  # of the class in the model
    probability: float  # 0 to 1; in a multi-label model the sum is not 1


class Predictor:
    """A compiled classifier: images -> the most probable classes.

    Several threads may call a Predictor at once. Programs for 1, 8 and `batch_size`
    images are compiled on first use, or in `warm_up`. Smaller batches are padded.

    labels: class names, or "imagenet" for ImageNet-1k's; None: the model's own names
        (`class_names`), or indices
    top: number of classes to return; None: 5, or all if the model has fewer
    threads: decoding threads; None: one per core, at most 16
    dtype to compiler_options: as for `optimize`
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
        if classes:
            vit.probabilities(np.zeros(classes))  # raises unless there are classes
        if threads is None:
            threads = min(16, available_cores())
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
        """The Program for a full batch."""
        return self._program(self.sizes[-1])

    def warm_up(self):
        """Compile the programs for all batch sizes now, and run every program once."""
        for size in self.sizes:
            program = self._program(size)
            jax.block_until_ready(program(np.zeros(program.images.shape, np.uint8)))

    def __call__(self, images) -> list:
        """Predict the most probable classes of one image or several images.

        images: one image: a path, a PIL image (both rotated by their EXIF orientation),
            or an array uint8 [H, W, 3]; or several images: an iterable of images, an
            array uint8 [B, H, W, 3], or a folder with all images below it, by name
        Returns the `top` Predictions, or the pooled vector, [D] float32, if the model
            has no classes. Several images give a list.
        Raises InputError for anything that is not an image, and for a single unreadable
            file. Among several images, an unreadable file's error takes its place in
            the list.
        """
        images, is_one = pictures.list_pictures(images)
        answers = list(self.stream(images))
        if not is_one:
            return answers
        if isinstance(answers[0], InputError):
            raise answers[0]
        return answers[0]

    def stream(self, images: Iterable) -> Iterator:
        """Yield image results in order; `images` may be endless.

        Images are computed in batches. At most two batches are read ahead.
        """
        images, _ = pictures.list_pictures(images)
        decoded = self._decoded(images)
        while part := list(itertools.islice(decoded, self.sizes[-1])):
            results = [_result(future) for future in part]
            pixels = [image for image in results if isinstance(image, np.ndarray)]
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
        """Compute the logits of at most a full batch, [b, classes]."""
        size = next(size for size in self.sizes if size >= len(pixels))
        program = self._program(size)
        # The guard is lifted, because device_get would take 60 us more.
        with jax.transfer_guard_device_to_host("allow"):
            return np.asarray(program(np.stack(pixels)))

    def _decoded(self, images):
        """Yield a Future of every image's pixels; threads read ahead."""
        waiting = collections.deque()
        for image in images:
            if not isinstance(image, pictures.AnyPath):
                # Read the pixels now: the caller may change or close the image later.
                image = pictures.read_pixels(image)
            crop = functools.partial(pictures.crop_picture, image, self._preprocessing)
            waiting.append(self._threads.submit(crop))
            if len(waiting) > self.sizes[-1]:
                yield waiting.popleft()
        yield from waiting

    def _most_probable(self, logits):
        """Turn one image's logits [classes] into the `top` Predictions."""
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
    """Return an image's pixels, or an unreadable file's error."""
    try:
        return future.result()
    except UnreadableImage as error:
        return error
