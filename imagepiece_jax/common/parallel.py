"""Many devices and processes that act as one: `pmap`, and exchanged values.

No other file uses `jax.pmap`. `placement.device_samples` says which samples of a global
batch each of the W devices of all processes holds.
"""

import contextlib
import json
import socket

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from imagepiece_jax.common import xla_options
from imagepiece_jax.common.placement import Placement, device_samples
from imagepiece_jax.common.progress import working
from imagepiece_jax.errors import InputError, RunError

AXIS = "devices"


class _ReportedError(InputError):
    """A mistake that another process found and reported."""


def gather(text):
    """The texts of all processes, in their order; every process calls it."""
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(data.size))
    padded = np.zeros(max(sizes.max(), 1), np.uint8)
    padded[: data.size] = data
    rows = multihost_utils.process_allgather(padded)
    texts = []
    for row, size in zip(rows, sizes, strict=True):
        texts.append(bytes(row[:size]).decode())
    return texts


def exchange(value):
    """The JSON `value` of every process, in their order; tuples come back as lists."""
    texts = gather(json.dumps({"value": value}))
    messages = [json.loads(text) for text in texts]
    for process, message in enumerate(messages):
        if "error" in message:
            raise _ReportedError(f"process {process} stopped: {message['error']}")
    return [message["value"] for message in messages]


def from_main(decide):
    """The JSON value that `decide()` returns in process 0, in every process.

    It decides whatever depends on shared files: for a while, processes may see
    different states of a network file system.
    """
    decision = None
    if is_main():
        decision = decide()
    return exchange(decision)[0]


@contextlib.contextmanager
def shared_errors():
    """Context in which all processes raise a mistake that one of them finds.

    Inside, all processes make the same calls of the functions of this file.
    """
    try:
        yield
    except _ReportedError:
        raise
    except (InputError, RunError, OSError) as error:
        gather(json.dumps({"error": f"{error} ({socket.gethostname()})"}))
        raise
    exchange(None)


def check_same(values: dict):
    """Check that values are the same in all processes.

    values: {what it is, in words: JSON value}
    """
    first, *others = exchange(values)
    for process, other in enumerate(others, start=1):
        for name in first | other:
            ours = first.get(name, "missing")
            theirs = other.get(name, "missing")
            if ours != theirs:
                raise InputError(
                    f"{name} is {theirs} on process {process}, but {ours} on process "
                    "0; all processes of a run need the same"
                )


def max_over_processes():
    """A function that returns the highest of the numbers that processes pass to it.

    All processes call it equally often, and get the same number. A single process gets
    its number back. Several get the highest number of the previous call (at first 0):
    that answer has arrived by now, and the device need not wait for the host.
    """
    if jax.process_count() == 1:
        return int
    highest_on_devices = pmap(lambda number: jax.lax.pmax(number, AXIS))
    latest = None

    def highest_of_previous_call(number):
        nonlocal latest
        previous = latest
        latest = highest_on_devices(replicate(np.int32(number)))
        return 0 if previous is None else int(unreplicate(previous))

    return highest_of_previous_call


def is_main():
    """Whether this is the process that writes logs and tables."""
    return jax.process_index() == 0


def local_devices(process=None):
    """Devices of a process (None: this one), in the order of arrays' leading axis."""
    return jax.local_devices(process)


def device_count():
    """Number of devices of all processes together."""
    return jax.device_count()


def placement(accumulation=1):
    """The Placement of this process; accumulation: micro-batches of a batch."""
    count = len(local_devices())
    return Placement(jax.process_index(), jax.process_count(), count, accumulation)


def pmap(fn, *, donate_argnums=(), program=None):
    """Compile `fn` for every device; inside it `mean`, `total` and others are known.

    Arguments and results have a leading axis of devices. NumPy arrays have a row for
    each device of this process. JAX arrays, from `replicate`, `shard` or an earlier
    call, have a row for each device of all processes; `local` and `unreplicate` read
    them.

    donate_argnums: arguments whose memory is reused if they are JAX arrays
    program: a name such as "training step" for a program of a model, which is compiled
        with xla_options and reported; None for anything else
    """
    count = device_count()
    mapped = jax.pmap(
        fn, axis_name=AXIS, donate_argnums=donate_argnums, axis_size=count
    )
    if program is None:
        return _Mapped(mapped, {})
    options = xla_options.options(local_devices()[0].platform)
    return _Mapped(mapped, options, f"compiling the {program}")


class _Mapped:
    """A mapped function, compiled ahead of time: `jax.pmap` itself takes no options.

    Its programs take and return arrays of all processes. `jax.pmap` uses arrays of one
    process; converting them around each call would take the host 20 times as long as
    the call itself (measured: 800 arrays, two processes of four CPU devices).
    """

    def __init__(self, mapped, options, work=None):
        self._mapped = mapped
        self._options = options
        self._compiled = {}
        self._work = work

    def __call__(self, *args):
        args = jax.tree.map(_global_array, args)
        key = _types(args)
        if key not in self._compiled:
            self.compile(*args)
        return self._compiled[key](*args)

    def compile(self, *args):
        """Compile and keep the program (`jax.stages.Compiled`) for such arguments.

        A `jax.ShapeDtypeStruct` has a row for each device of all processes.
        """
        # `lower` would take a shape to be one of this process.
        types = jax.tree.map(lambda x: jax.typeof(_global_shape(x)), args)
        key = _types(types)
        if key not in self._compiled:
            if are_crowded():
                forget_programs()
            reported = self._work is not None and is_main()
            with working(self._work, enabled=reported):
                self._compiled[key] = self._lowered(types).compile(self._options)
        return self._compiled[key]

    def _lowered(self, types):
        # JAX 0.10 itself mixes types when it lowers bfloat16's backward products.
        with jax.numpy_dtype_promotion("standard"):
            return self._mapped.lower(*types)

    @property
    def working_bytes(self):
        """Bytes that the largest program needs besides arguments and results."""
        sizes = (program.memory_analysis() for program in self._compiled.values())
        return max(size.temp_size_in_bytes for size in sizes)


def _types(args):
    """The key of a program: the tree of its arguments, their shapes and dtypes."""
    leaves, tree = jax.tree.flatten(args)
    return tree, *[(leaf.shape, leaf.dtype) for leaf in leaves]


def are_crowded() -> bool:
    """Whether programs take half of the memory maps that Linux allows a process.

    A program takes up to 2,500 of 65,530 (vm.max_map_count). Where none is left, XLA
    ends the process by SIGSEGV while it compiles, or writes to the compilation cache
    (jaxlib 0.10.2).
    """
    try:
        with open("/proc/sys/vm/max_map_count") as file:
            allowed = int(file.read())
        with open("/proc/self/maps", "rb") as file:
            maps = len(file.readlines())
    except OSError:  # another system
        return False
    return 2 * maps > allowed


def forget_programs():
    """Unload the programs of mapped functions that nobody refers to.

    `jax.pmap` never frees its caches. Mapped functions with a reference keep their
    programs; other functions compile again when they are called.
    """
    jax.clear_caches()


def replicate(tree):
    """A copy of every array on every device: [...] -> [devices, ...]."""
    count = len(local_devices())

    def put(x):
        x = np.asarray(jax.device_get(x))
        return _global_array(np.broadcast_to(x, (count, *x.shape)))

    return jax.tree.map(put, tree)


def local(tree):
    """This process's part as NumPy: [devices, ...] -> [local devices, ...]."""

    def part(x):
        shards = [shard.data for shard in x.addressable_shards]
        return np.concatenate(jax.device_get(shards))

    return jax.tree.map(part, tree)


def unreplicate(tree):
    """The first device's copy as NumPy on the host: [devices, ...] -> [...].

    The copy owns its memory and is writable, so the device arrays may be donated while
    it is being saved.
    """
    first = jax.tree.map(lambda x: x.addressable_shards[0].data, tree)
    return jax.tree.map(lambda x: np.array(x[0]), jax.device_get(first))


def shard(tree):
    """Split this process's samples: [n, ...] -> [devices, n / local devices, ...]."""
    count = len(local_devices())

    def put(x):
        return _global_array(x.reshape(count, len(x) // count, *x.shape[1:]))

    return jax.tree.map(put, tree)


def mean(tree):
    """The mean over all devices, inside `pmap`."""
    return jax.lax.pmean(tree, AXIS)


def total(tree):
    """The sum over all devices, inside `pmap`."""
    return jax.lax.psum(tree, AXIS)


def positions(micro_batch_size):
    """Places of this device's samples in the global batch, int32 [m], inside `pmap`."""
    devices = jax.lax.axis_size(AXIS)
    samples = device_samples(micro_batch_size * devices, devices)
    return jnp.asarray(samples, jnp.int32)[jax.lax.axis_index(AXIS)]


def reverse(tree):
    """Reverse the global batch, inside `pmap`: sample i becomes sample B - 1 - i.

    A device holds both samples of a pair, so it reverses its own
    (`placement.device_samples`). Where it has an odd number, it swaps the middle one
    with the mirrored device.
    """
    count = jax.lax.axis_size(AXIS)
    mirrored = [(device, count - 1 - device) for device in range(count)]

    def flip(x):
        half, odd = divmod(len(x), 2)
        if odd and count > 1:
            middle = jax.lax.ppermute(x[half], AXIS, mirrored)
            x = x.at[half].set(middle)
        return x[::-1]

    return jax.tree.map(flip, tree)


def _global_shape(x):
    """Shape and type of `_global_array(x)`, without copying anything."""
    shape = x.shape
    if isinstance(x, np.ndarray):
        shape = (len(x) * jax.process_count(), *shape[1:])
    return jax.ShapeDtypeStruct(shape, x.dtype)


def _global_array(x):
    """NumPy [local devices, ...] of each process as one array [devices, ...] of all.

    An array of JAX is one already.
    """
    if not isinstance(x, np.ndarray):
        return x
    return jax.make_array_from_process_local_data(_sharding(), x)


def _sharding():
    """The sharding of a leading axis, one row a device, in the order of `jax.pmap`."""
    devices = []
    for process in range(jax.process_count()):
        devices += local_devices(process)
    mesh = jax.sharding.Mesh(np.array(devices), (AXIS,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))
