"""Images for end-to-end benchmarks, read by the project's own loader.

Programs that use the same images share one loader. With a loader each, a program would
start its turn with batches that were read during another program's turn.
"""

import contextlib
import dataclasses

from imagepiece_jax.data import loader
from imagepiece_jax.data.transforms import EvalTransform
from imagepiece_jax.training import from_config


class InputStreams:
    """Endless batches of configs' validation images; close() ends the reading."""

    def __init__(self):
        self._open, self._streams = contextlib.ExitStack(), {}

    def batches(self, config):
        """Iterator over uint8 [config.batch_size, S, S, 3], decoded and cropped."""
        key = (config.image_size, config.batch_size, config.data.to_json())
        if key not in self._streams:
            self._streams[key] = _read(config)
            self._open.callback(self._streams[key].close)
        return self._streams[key]

    def close(self):
        self._open.close()


def check(config):
    """InputError if images are missing, too few, or of another size."""
    _source(config)


def _source(config):
    source = from_config.source(config, "val")
    loader.steps_per_epoch(len(source), config.batch_size)
    from_config.try_first(source, from_config.eval_transform(config))
    return source


def _read(config):
    batches = loader.train_batches(
        _source(config),
        _EvalCrop(from_config.eval_transform(config)),
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=0,
        stop_step=10**9,
        workers=config.data.workers,
        threads=config.data.threads,
    )
    with contextlib.closing(batches):
        for batch in batches:
            yield batch["image"][0, 0]  # one device, one micro-batch


@dataclasses.dataclass(frozen=True)
class _EvalCrop:
    """Evaluation's crop in training's endless order, which passes a generator."""

    transform: EvalTransform

    fields = ("image",)
    random = False

    @property
    def shape(self):
        return self.transform.shape

    def __call__(self, image, rng=None):
        return self.transform(image)
