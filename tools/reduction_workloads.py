"""Timed programs of one reduction: several of them in a row, plain and fused.

By default the first step of DeiT-S on images of 224 pixels. A program chains several
reductions of different random inputs, so that the device is timed and not the launch.
"""

import dataclasses

import jax
import jax.numpy as jnp

from imagepiece_jax.benchmark import device
from imagepiece_jax.common import timer
from imagepiece_jax.models.attention import class_attention
from imagepiece_jax.reduction.kernel_agreement import Reduction, random_inputs
from imagepiece_jax.reduction.kernels import fused

CHAIN = 8  # reductions per program
HEAD_WIDTH = 64


@dataclasses.dataclass(frozen=True)
class ReductionWorkload:
    """A job of `CHAIN` reductions, and the fewest bytes that one of them must move.

    rule: as in Reduction; version: "plain" or "fused".
    """

    rule: str
    version: str
    job: timer.Job
    bytes: int


def workloads(batch, tokens, heads, dtype):
    """Return the compiled ReductionWorkloads of every rule and available version."""
    width = heads * HEAD_WIDTH
    inputs = [
        random_inputs(seed, batch, tokens, heads, HEAD_WIDTH, dtype)
        for seed in range(CHAIN)
    ]
    found = []
    for reduction in reductions(tokens):
        # Keys and tokens read and tokens written, each once.
        rows = 2 * (tokens + 1) + reduction.n_out + 1
        moved = batch * rows * width * jnp.dtype(dtype).itemsize
        for version in versions(dtype):
            run = _chained(getattr(reduction, version))
            program = jax.jit(run).lower(inputs).compile()
            job = timer.job(lambda number, program=program: program(inputs))
            found.append(ReductionWorkload(reduction.rule, version, job, moved))
    return found


def reductions(tokens):
    """Return what ImagePiece merges, EViT keeps and ToMe merges of `tokens` tokens."""
    candidates = int(0.3 * tokens)
    merged = min(round(0.08 * (tokens + 1)), candidates // 2)
    return (
        Reduction("retokenize", class_attention, tokens - merged, candidates),
        Reduction("prune", class_attention, round(0.7 * tokens)),
        Reduction("bipartite", class_attention, tokens - min(13, tokens // 2)),
    )


def versions(dtype):
    """Return ("plain", "fused"), or "plain" alone where the device lacks the kernel."""
    return ("plain",) if obstacle(dtype) else ("plain", "fused")


def obstacle(dtype):
    """What the fused reduction lacks on this device, in words; None where it runs."""
    if dtype not in fused.DTYPES:
        return f"dtype {' or '.join(fused.DTYPES)}"
    return fused.obstacle(device.platform())


def _chained(reduce):
    """Return a function of a list of inputs that reduces one after the other."""

    def run(inputs):
        results = []
        for arrays in inputs:
            if results:  # else XLA may join their small kernels
                arrays, results[-1] = jax.lax.optimization_barrier(
                    (arrays, results[-1])
                )
            results.append(reduce(*arrays))
        return results

    return run
