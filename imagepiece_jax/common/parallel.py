"""Devices and processes that act as one: `pmap`, and exchanged values."""

import contextlib
import functools
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Int, PyTree

from imagepiece_jax.common import xla_options
from imagepiece_jax.common.placement import Placement, device_samples
from imagepiece_jax.common.progress import announced_work
from imagepiece_jax.errors import InputError, RunError

DEVICE_AXIS = "devices"


class _ReportedError(InputError):
    """A mistake reported by another process."""


def without_mesh(function: Callable) -> Callable:
    """Let a function place its own arrays, also after the caller's `jax.set_mesh`."""

    @functools.wraps(function)
    def call(*args, **options):
        if jax.sharding.get_abstract_mesh().empty:
            return function(*args, **options)
        with jax.set_mesh(None):
            return function(*args, **options)

    return call


def gather_texts(text: str) -> list[str]:
    """Return every process's text, in process order. Every process must call it."""
    if jax.process_count() == 1:
        return [text]
    encoded_text = np.frombuffer(text.encode(), np.uint8)
    # Processes can only gather arrays of equal shapes, so texts are padded.
    lengths = multihost_utils.process_allgather(np.int32(encoded_text.size))
    padded_text = np.zeros(lengths.max(), np.uint8)
    padded_text[: encoded_text.size] = encoded_text
    padded_rows = multihost_utils.process_allgather(padded_text)  # [processes, bytes]
    rows_and_lengths = zip(padded_rows, lengths, strict=True)
    return [bytes(row[:length]).decode() for row, length in rows_and_lengths]


def exchange_values(value: Any) -> list:
    """Return every process's JSON `value`, in process order. Tuples become lists."""
    messages = list(map(json.loads, gather_texts(json.dumps({"value": value}))))
    for process, message in enumerate(messages):
        if "error" in message:
            raise _ReportedError(f"process {process} stopped: {message['error']}")
    return [message["value"] for message in messages]


def share_main_decision(decide: Callable[[], Any]) -> Any:
    """Call `decide()` in process 0 and return its JSON value in every process."""
    # Decisions about shared files belong here: for a while, processes may see different
    # states of a network file system.
    return exchange_values(decide() if is_main() else None)[0]


@contextlib.contextmanager
def shared_errors() -> Iterator[None]:
    """Raise a mistake of one process in all processes.

    Inside, all processes must make the same calls to this file's functions.
    """
    try:
        yield
    except _ReportedError:  # all processes know it already
        raise
    except (InputError, RunError, OSError) as error:
        gather_texts(json.dumps({"error": f"{error} ({socket.gethostname()})"}))
        raise
    exchange_values(None)  # raises another process's mistake


def check_same_values(values: dict) -> None:
    """Check that all processes have the same `values`: {name in errors: JSON value}."""
    main_values, *other_values = exchange_values(values)
    for process_index, process_values in enumerate(other_values, start=1):
        for name in main_values | process_values:
            main_value = main_values.get(name, "missing")
            process_value = process_values.get(name, "missing")
            if main_value != process_value:
                raise InputError(
                    f"{name} is {process_value} on process {process_index}, but "
                    f"{main_value} on process 0"
                )


def is_main() -> bool:
    """Whether this process writes logs and tables."""
    return jax.process_index() == 0


def local_devices(process: int | None = None) -> list[jax.Device]:
    """Devices of a process (None: this process), in leading-axis order."""
    return jax.local_devices(process)


def device_count() -> int:
    """Device count over all processes."""
    return jax.device_count()


def process_placement(accumulation: int = 1) -> Placement:
    """This process's Placement, with `accumulation` micro-batches per batch."""
    return Placement(
        jax.process_index(), jax.process_count(), len(local_devices()), accumulation
    )


def pmap(
    fn: Callable, donate_argnums: tuple[int, ...] = (), program_name: str | None = None
) -> "MappedFunction":
    """Compile `fn` for every device, as this file's functions "inside `pmap`" need it.

    Arguments and results have a leading device axis. A NumPy array has one row per
    device of this process. A JAX array (from `replicate`, `shard_samples` or an earlier
    call) has one row per device of all processes: see `local_rows`, `unreplicate`.

    donate_argnums: arguments whose memory is reused if they are JAX arrays
    program_name: name of a model program, such as "training step". It is compiled with
        xla_options, and its compilation is reported. None: neither.
    """
    mapped_fn = jax.pmap(
        fn, DEVICE_AXIS, donate_argnums=donate_argnums, axis_size=device_count()
    )
    return MappedFunction(mapped_fn, program_name)


class MappedFunction:
    """A mapped function, compiled ahead of time: `jax.pmap` itself takes no options."""

    def __init__(self, mapped_fn: Any, program_name: str | None) -> None:
        self._mapped_fn = mapped_fn
        self._program_name = program_name
        self._programs: dict[tuple, jax.stages.Compiled] = {}

    def __call__(self, *args: PyTree) -> PyTree:
        # Programs take and return arrays of all processes. `jax.pmap` uses arrays of
        # one process: converting them around every call would take the host 20 times as
        # long as the call itself (measured: 800 arrays, two processes of four CPU
        # devices).
        args = jax.tree.map(_global_array, args)
        key = _program_key(args)
        if key not in self._programs:
            self.compile(*args)
        return self._programs[key](*args)

    def compile(self, *args: PyTree) -> jax.stages.Compiled:
        """Compile, keep and return the program for these arguments.

        A `jax.ShapeDtypeStruct` has one row per device of all processes.
        """
        # Types, not shapes: `lower` would read a shape as this process's rows alone.
        types = jax.tree.map(lambda array: jax.typeof(_global_shape(array)), args)
        key = _program_key(types)
        if key not in self._programs:
            options = {}
            if self._program_name:
                options = xla_options.compiler_options(local_devices()[0].platform)
            is_announced = bool(self._program_name) and is_main()
            with announced_work(f"compiling the {self._program_name}", is_announced):
                lowered = self._mapped_fn.lower(*types)
                self._programs[key] = lowered.compile(options)
        return self._programs[key]

    @property
    def working_bytes(self) -> int:
        """Bytes of the largest program's temporaries, without arguments and results."""
        analyses = (program.memory_analysis() for program in self._programs.values())
        return max(memory.temp_size_in_bytes for memory in analyses if memory)


def _program_key(args):
    """Hashable structure, shapes and dtypes of arguments."""
    leaves, treedef = jax.tree.flatten(args)
    return treedef, *[(leaf.shape, leaf.dtype) for leaf in leaves]


def replicate(tree: PyTree) -> PyTree:
    """Copy every array to every device: [...] -> [devices, ...]."""

    def replicate_leaf(leaf):
        array = np.asarray(jax.device_get(leaf))
        rows = np.broadcast_to(array, (len(local_devices()), *array.shape))
        return _global_array(rows)

    return jax.tree.map(replicate_leaf, tree)


def local_rows(tree: PyTree) -> PyTree:
    """Read this process's rows as NumPy: [devices, ...] -> [local devices, ...]."""

    def read_rows(array):
        rows = [shard.data for shard in array.addressable_shards]  # [1, ...] each
        return np.concatenate(jax.device_get(rows))

    return jax.tree.map(read_rows, tree)


def unreplicate(tree: PyTree) -> PyTree:
    """Copy the first local device's row to NumPy: [devices, ...] -> [...]."""
    # One row, [1, ...].
    rows = jax.tree.map(lambda array: array.addressable_shards[0].data, tree)
    # A writable copy with its own memory: the device arrays may be donated while the
    # copy is being saved.
    return jax.tree.map(lambda row: np.array(row[0]), jax.device_get(rows))


def shard_samples(tree: PyTree) -> PyTree:
    """Split this process's samples: [n, ...] -> [devices, n / local devices, ...]."""
    num_devices = len(local_devices())

    def shard_array(array):
        return _global_array(array.reshape(num_devices, -1, *array.shape[1:]))

    return jax.tree.map(shard_array, tree)


def micro_batch_positions(
    num_images: int, micro_batch_index: Int[Array, ""]
) -> Int[Array, " {num_images}"]:
    """Global positions of a micro-batch's images on this device, inside `pmap`."""
    num_devices = jax.lax.axis_size(DEVICE_AXIS)
    micro_batch_size = num_images * num_devices
    samples_of_device = device_samples(micro_batch_size, num_devices)
    # [devices, num_images], and this device's row.
    all_positions = jnp.asarray(samples_of_device, jnp.int32)
    device_positions = all_positions[jax.lax.axis_index(DEVICE_AXIS)]
    return micro_batch_index * micro_batch_size + device_positions


def reverse_batch(tree: PyTree) -> PyTree:
    """Reverse the global batch, inside `pmap`: sample i becomes sample B - 1 - i."""
    # A device holds both samples of a pair (`placement.device_samples`), so it reverses
    # its own rows. With an odd row count, it swaps the middle row with the mirrored
    # device.
    num_devices = jax.lax.axis_size(DEVICE_AXIS)
    device_pairs = [(number, num_devices - 1 - number) for number in range(num_devices)]

    def reverse_rows(rows):  # [this device's samples, ...]
        middle, is_odd = divmod(len(rows), 2)
        if is_odd and num_devices > 1:
            swapped_row = jax.lax.ppermute(rows[middle], DEVICE_AXIS, device_pairs)
            rows = rows.at[middle].set(swapped_row)
        return rows[::-1]

    return jax.tree.map(reverse_rows, tree)


def _global_shape(rows):
    """Shape and dtype of `_global_array(rows)`, computed without a copy."""
    shape = rows.shape
    if isinstance(rows, np.ndarray):
        shape = (len(rows) * jax.process_count(), *shape[1:])
    return jax.ShapeDtypeStruct(shape, rows.dtype)


def _global_array(rows):
    """Join the NumPy rows of all processes in one JAX array [devices, ...]."""
    if not isinstance(rows, np.ndarray):  # a JAX array has all rows already
        return rows
    devices = []  # one row each, in `jax.pmap`'s order
    for process in range(jax.process_count()):
        devices += local_devices(process)
    mesh = jax.sharding.Mesh(np.array(devices), (DEVICE_AXIS,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(DEVICE_AXIS))
    return jax.make_array_from_process_local_data(sharding, rows)
