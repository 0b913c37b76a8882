"""Batches read by processes, which import this module instead of JAX."""

import time

from imagepiece_jax.data import worker_pool
from imagepiece_jax.data.batches import BatchChunk, Batches
from tests.helpers.noise_images import Noise, train_batches, train_transform


class Filled:
    """Batches of three chunks. A chunk fills 5 pixels with a number."""

    def __init__(self, steps):
        self.total_chunks = 3 * steps

    source = None
    consequence = ""
    chunks_per_batch = 3
    read_batches = Batches.read_batches
    max_buffered_chunks = Batches.max_buffered_chunks
    chunk_bytes = 7

    def read_chunk(self, number, allocate):
        time.sleep(0.02 * (number % 3 == 0))
        pixels = allocate((5,))
        pixels[:] = number % 200
        return BatchChunk(pixels, [])

    def join_chunks(self, chunks):
        return [chunk.pixels.copy() for chunk in chunks]


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
