"""Time of attention alone, with and without the log sizes of proportional attention.

python -m tools.attention_speed --images 256 --lengths 197,140,100

"Sizes" is what a model runs. "Rows" gives them to the kernel as they are, without the
padding that aligns rows of an odd length on a GPU.
"""

import functools
import json

import jax
import jax.numpy as jnp

from imagepiece_jax import cli
from imagepiece_jax.benchmark import device
from imagepiece_jax.common import timer, xla_options
from imagepiece_jax.common.files import check_writable, replace_file
from imagepiece_jax.common.tables import text_table
from imagepiece_jax.errors import whole_numbers
from imagepiece_jax.models.attention import attend, resolve_backend

IMAGES = cli.integer("images", 256, "at once", 1)
LENGTHS = cli.listed("lengths", ["197", "184", "171", "140", "100", "51", "27"], "each")
HEADS = cli.integer("heads", 6, "of attention, each 64 wide", 1)
DTYPE = cli.dtype("of queries, keys and values")
TIMING = cli.timing()
JSON = cli.text("json", None, "a line each")
CHAIN = 8  # attentions of a program, so that its start does not count
HEAD_WIDTH = 64
LARGEST = 8  # patches of a token


def main():
    if JSON.value:
        check_writable("--json", JSON.value, [".json", ".jsonl"])
    lengths = whole_numbers("--lengths", LENGTHS.value)
    dtype = DTYPE.value or xla_options.fast_dtype()
    backend = resolve_backend("auto", dtype)
    rules = TIMING()
    rows = []
    for tokens in lengths:
        rows += measure(tokens, dtype, backend, rules)
    print(f"{device.name()}, {dtype}, {backend}, us of {IMAGES.value} images")
    table = [["median", "lowest", "highest", "tokens", ""]]
    for row in rows:
        cells = [f"{value:.1f}" for value in row["us"]]
        table.append([*cells, str(row["tokens"]), row["way"]])
    print(text_table(table))
    if JSON.value:
        replace_file(JSON.value, "".join(json.dumps(row) + "\n" for row in rows))


def measure(tokens, dtype, backend, rules):
    """Rows of the ways to attend to so many tokens, which take turns."""
    inputs = [random_inputs(seed, tokens, dtype) for seed in range(CHAIN)]
    jobs = {}
    for name, way in ways(backend).items():
        program = jax.jit(_each(way)).lower(inputs).compile()
        jobs[name] = timer.TimedCall(lambda number, program=program: program(inputs))
    rows = []
    for name, seconds in timer.measure(jobs, rules).items():
        us = timer.spread([1e6 * second / CHAIN for second in seconds])
        row = {"tokens": tokens, "way": name, "us": us, "heads": HEADS.value}
        row |= {"images": IMAGES.value, "dtype": dtype, "backend": backend}
        rows.append(row | {"device": device.name()})
    return rows


def ways(backend):
    """Functions of queries, keys, values and log sizes, by name."""

    def none(query, key, value, sizes):
        return attend(query, key, value, backend=backend)

    def rows(query, key, value, sizes):
        bias = sizes[:, None, None, :].astype(query.dtype)
        shape = (len(query), 1, query.shape[1], key.shape[1])
        bias = jnp.broadcast_to(bias, shape)
        return jax.nn.dot_product_attention(
            query, key, value, bias=bias, implementation=backend
        )

    return {
        "none": none,
        "sizes": functools.partial(attend, backend=backend),
        "rows": rows,
    }


def random_inputs(seed, tokens, dtype):
    """Queries, keys and values [B, N, H, d], and log sizes [B, N] in float32."""
    *keys, of_sizes = jax.random.split(jax.random.key(seed), 4)
    shape = (IMAGES.value, tokens, HEADS.value, HEAD_WIDTH)
    heads = [jax.random.normal(key, shape, dtype) for key in keys]
    patches = jax.random.randint(of_sizes, shape[:2], 1, LARGEST + 1)
    return *heads, jnp.log(patches.astype(jnp.float32))


def _each(way):
    return lambda inputs: [way(*arrays) for arrays in inputs]


if __name__ == "__main__":
    cli.run(main, compiles=False)
