"""Where do images of an end-to-end benchmark come from? The project's own loader.

Subjects that want the same images share one loader: read ahead while one of them has
its turn, the next one finds no more than it leaves behind.
"""

import contextlib
import dataclasses

from imagepiece_jax.data import loader
from imagepiece_jax.data.transforms import EvalTransform
from imagepiece_jax.training import from_config


class Feeds:
    """Endless batches of the validation images of configs; close() ends the reading."""

    def __init__(self):
        self._open, self._found = contextlib.ExitStack(), {}

    def batches(self, config):
        """Iterator over uint8 [config.batch_size, S, S, 3], decoded and cropped."""
        key = (config.image_size, config.batch_size, config.data.to_json())
        if key not in self._found:
            read = _read(config)
            self._open.callback(read.close)
            self._found[key] = read
        return self._found[key]

    def close(self):
        self._open.close()


def check(config):
    """InputError where there are no images, too few, or of another size."""
    _source(config)


def _source(config):
    source = from_config.source(config, "val")
    loader.steps_per_epoch(len(source), config.batch_size)
    from_config.try_first(source, from_config.eval_transform(config))
    return source


def _read(config):
    batches = loader.train_batches(
        _source(config),
        _Fixed(from_config.eval_transform(config)),
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=0,
        stop_step=10**9,
        workers=config.data.workers,
        threads=config.data.threads,
    )
    with contextlib.closing(batches):
        for batch in batches:
            yield batch["image"][0, 0]  # of one device, in one piece


@dataclasses.dataclass(frozen=True)
class _Fixed:
    """The crop of evaluation in training's endless order, which passes a generator."""

    transform: EvalTransform

    fields = ("image",)
    random = False

    @property
    def side(self):
        return self.transform.side

    def __call__(self, image, rng=None):
        return self.transform(image)
