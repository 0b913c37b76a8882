"""Batches read by processes, which import this module instead of JAX."""

from imagepiece_jax.data import worker_pool
from tests.helpers.noise_images import Noise, train_batches, train_transform


def train(source, stop, **options):
    """Iterator over `stop` batches of 40 images that are made in three repeats."""
    transform = train_transform(24)
    return train_batches(source, stop, 40, transform, repeats=3, **options)


def read_forever():
    """Read batches in two processes, and print a line at the first one."""
    worker_pool.MIN_TASKS = 1
    batches = train(Noise(300), 10**6, workers=2, threads=2)
    next(batches)
    print(flush=True)
    for _ in batches:
        pass


if __name__ == "__main__":
    read_forever()
