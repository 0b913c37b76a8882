"""Predict the most probable classes of image files, PIL images or arrays."""

import collections
import itertools
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from imagepiece_jax.common.checks import check_range
from imagepiece_jax.common.device import default_threads
from imagepiece_jax.data import class_names, pictures
from imagepiece_jax.data.decode import UnreadableImage
from imagepiece_jax.errors import InputError
from imagepiece_jax.inference import optimize
from imagepiece_jax.models.pretrained import Pretrained, check_loaded


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
    options: fields of ProgramOptions except `pixels`
    """

    def __init__(
        self,
        vit: Pretrained,
        *,
        labels: Sequence[str] | str | None = None,
        top: int | None = None,
        batch_size: int = 32,
        threads: int | None = None,
        **options: Any,
    ) -> None:
        check_loaded(vit)
        num_classes = vit.config.num_classes
        if labels is None:
            names = vit.class_names or [None] * num_classes  # None: no name
        else:
            if labels == "imagenet":
                labels = class_names.imagenet_names()
            names = class_names.checked_names(labels, num_classes, "labels")
        self._class_names = names
        self._top = min(5, num_classes) if top is None else top
        # A model without classes has top 0.
        check_range("top", self._top, min(1, num_classes), num_classes, whole=True)
        if num_classes:
            # Raises InputError now, not at the first image, unless outputs are classes.
            vit.config.head.probabilities(np.zeros(num_classes))
        if threads is None:
            threads = default_threads()
        check_range("batch_size", batch_size, 1, whole=True)
        smaller_sizes = [size for size in (1, 8) if size < batch_size]
        self.batch_sizes = (*smaller_sizes, batch_size)
        # np.array copies: a row alone would keep its batch in memory.
        self._as_result = self._most_probable if num_classes else np.array
        self._preprocessing = vit.preprocessing
        self._probabilities = vit.config.head.probabilities
        program_options = optimize.ProgramOptions(**options, pixels=True)
        self._compile_batch = optimize.make_program_compiler(vit, program_options)
        self._programs: dict[int, optimize.Program] = {}
        self._lock = threading.Lock()
        self._decode_pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    @property
    def program(self) -> optimize.Program:
        """The Program for a full batch."""
        return self._find_program(self.batch_sizes[-1])

    def warm_up(self) -> None:
        """Compile the programs for all batch sizes now, and run every program once."""
        for batch_size in self.batch_sizes:
            program = self._find_program(batch_size)
            jax.block_until_ready(program(np.zeros(program.input_spec.shape, np.uint8)))

    def __call__(self, images: Any) -> Any:
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
        results = list(self.stream(images))
        if not is_one:
            return results
        if isinstance(results[0], InputError):
            raise results[0].with_traceback(None)  # of a thread
        return results[0]

    def stream(self, images: Iterable) -> Iterator:
        """Yield image results in order; `images` may be endless.

        Images are computed in batches. At most two batches are read ahead.
        """
        images, _ = pictures.list_pictures(images)
        futures = self._read_ahead(images)
        while batch_futures := list(itertools.islice(futures, self.batch_sizes[-1])):
            pixels_or_errors = []
            for future in batch_futures:
                try:
                    pixels_or_errors.append(future.result())
                except UnreadableImage as error:
                    pixels_or_errors.append(error)
            pixels = [each for each in pixels_or_errors if isinstance(each, np.ndarray)]
            logits_rows = iter(())
            if pixels:
                program = self._find_program(len(pixels))
                logits_rows = iter(np.asarray(program(np.stack(pixels))))
            for pixels_or_error in pixels_or_errors:
                if isinstance(pixels_or_error, InputError):
                    yield pixels_or_error
                else:
                    yield self._as_result(next(logits_rows))

    def _find_program(self, num_images):
        # The smallest that fits: a Program pads images, and cuts its results.
        batch_size = next(size for size in self.batch_sizes if size >= num_images)
        with self._lock:  # of several threads, only one compiles a size
            if batch_size not in self._programs:
                self._programs[batch_size] = self._compile_batch(batch_size)
            return self._programs[batch_size]

    def _read_ahead(self, images):
        """Yield a Future of every image's pixels; threads read ahead."""
        waiting_futures: collections.deque[Future] = collections.deque()
        for image in images:
            path_or_pixels = image
            if not isinstance(image, pictures.AnyPath):
                # Read the pixels now: the caller may change or close the image later.
                path_or_pixels = pictures.read_pixels(image)
            arguments = (pictures.crop_picture, path_or_pixels, self._preprocessing)
            waiting_futures.append(self._decode_pool.submit(*arguments))
            if len(waiting_futures) > self.batch_sizes[-1]:  # a full batch ahead
                yield waiting_futures.popleft()
        yield from waiting_futures

    def _most_probable(self, logits):
        """Return the Predictions of one image; logits: [classes]."""
        probabilities = self._probabilities(logits)
        # Stable: of equal logits, the first class is named.
        indices = np.argsort(-logits, kind="stable")[: self._top]
        predictions = []
        for index in indices.tolist():
            name = self._class_names[index]
            label = index if name is None else name
            predictions.append(Prediction(label, index, float(probabilities[index])))
        return predictions
