"""Who computes which part of the batch? Devices, processes, and what they exchange.

The project's only mention of `jax.pmap` and `jax.distributed`: moving to another way of
running on many devices means rewriting this file. Layout: which samples of a global
batch each of the W devices (all processes together) holds is `layout.device_samples`.
"""

import collections
import contextlib
import os
import socket
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from imagepiece_jax.common import xla_options
from imagepiece_jax.common.layout import device_samples
from imagepiece_jax.errors import InputError, Stopped
from imagepiece_jax.training import peer_failure

AXIS = "devices"
# Seconds without a sign of life until a process counts as dead, and that a process
# which ends waits for the others to end too: all have stopped within a minute.
HEARTBEAT, SHUTDOWN = 30, 15


@contextlib.contextmanager
def joined(job):
    """While entered, this process is one of those of `job` (from `hosts.find`).

    Enter it before anything else uses JAX; None means that the process is alone, and
    nothing happens. A process that cannot reach the others any more says so in one
    sentence and ends with status 1; the others learn of an exception that leaves this
    block, and do the same. InputError where they have not as many devices each.
    """
    if job is None:
        yield
        return
    _check_coordinator(job)
    lost = peer_failure.sentence(job.process_id, job.num_processes, job.coordinator)
    where = f"process {job.process_id} of {job.num_processes}: waiting for the others"
    print(f"{where} at {job.coordinator}, for up to 5 minutes", file=sys.stderr)
    peer_failure.speak_at_abort(lost)
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM
    jax.distributed.initialize(
        job.coordinator,
        job.num_processes,
        job.process_id,
        local_device_ids=job.local_devices,
        cluster_detection_method="deactivate",
        heartbeat_timeout_seconds=HEARTBEAT,
        shutdown_timeout_seconds=SHUTDOWN,
    )
    try:
        check_devices(jax.devices())
        _meet()
        yield
        _wait_for_all()
    except Stopped:  # which all of them do at the same step
        _wait_for_all()
        raise
    except jax.errors.JaxRuntimeError as error:
        if peer_failure.is_loss(error):
            peer_failure.end(f"{error}\n{lost}")
        peer_failure.leave_quietly()
        raise
    except BaseException:
        peer_failure.leave_quietly()
        raise


def check_devices(devices):
    """InputError where the processes do not have equally many of `devices`."""
    counts = collections.Counter(device.process_index for device in devices)
    for process, count in counts.items():
        if count != counts[0]:
            raise InputError(
                f"process {process} has {count} devices, but process 0 has "
                f"{counts[0]}: give every process equally many"
            )


def _meet():
    """Connect all processes and all devices now, while nobody is busy compiling.

    The first exchange does it, and on CPUs gives up after 30 seconds.
    """
    _wait_for_all()
    jax.block_until_ready(Highest().exchange(replicate(np.int32(0))))


def _wait_for_all():
    multihost_utils.sync_global_devices("all processes")


def gather(text):
    """What every process gives here, in their order; all of them call it."""
    if process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(data.size))
    padded = np.zeros(max(sizes.max(), 1), np.uint8)
    padded[: data.size] = data
    rows = multihost_utils.process_allgather(padded)
    return [bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)]


class Highest:
    """The highest number that any process gives: the same answer in all of them.

    All call it equally often, with a number from 0. A process that is alone gets its
    own number back. Several get the highest of the call before (at first 0): then the
    answer is there by now, and the device need not wait for the host.
    """

    def __init__(self):
        self.exchange = pmap(lambda number: jax.lax.pmax(number, AXIS))
        self._given = None

    def __call__(self, number):
        if process_count() == 1:
            return number
        before, self._given = self._given, self.exchange(replicate(np.int32(number)))
        return 0 if before is None else int(unreplicate(before))


def _check_coordinator(job):
    """InputError where nobody knows its host, or its port is another program's.

    One would wait for the host, and JAX crashes at the port.
    """
    host, _, port = job.coordinator.rpartition(":")
    try:
        socket.getaddrinfo(host.strip("[]"), None)
    except OSError as error:
        raise InputError(
            f"--coordinator is {job.coordinator}, but there is no host {host} "
            f"({error.strerror}): allowed are HOST:PORT of process 0"
        ) from error
    try:
        if job.process_id == 0:
            socket.create_server(("", int(port))).close()
    except OSError as error:
        raise InputError(
            f"--coordinator is {job.coordinator}, but port {port} cannot be opened "
            f"here ({os.strerror(error.errno)}): choose another port"
        ) from error


def process_index():
    """Number of this process, 0 .. process_count() - 1."""
    return jax.process_index()


def process_count():
    """How many processes (hosts) take part."""
    return jax.process_count()


def is_main():
    """True in the one process that writes logs and tables."""
    return jax.process_index() == 0


def local_devices():
    """Devices of this process, in the order of the leading axis of its arrays."""
    return jax.local_devices()


def device_count():
    """W: devices of all processes together."""
    return jax.device_count()


def pmap(fn, *, donate_argnums=(), model=False):
    """Compile `fn` for every device; inside, the functions below know the others.

    Arguments and results carry a leading axis of devices: NumPy arrays have those of
    this process, JAX arrays (`replicate`, `shard`, results of earlier calls) those of
    all; `local` and `unreplicate` read them. Donated arguments are JAX arrays, else
    they would be copied. `model`: with the compiler options that suit a model
    (models.compiler).
    """
    mapped = jax.pmap(
        fn, axis_name=AXIS, donate_argnums=donate_argnums, axis_size=device_count()
    )
    return _Mapped(
        mapped, xla_options.options(local_devices()[0].platform) if model else {}
    )


class _Mapped:
    """A mapped function, compiled ahead of time: `jax.pmap` itself takes no options.

    What it compiles is called with arrays of all processes. `jax.pmap` takes and gives
    those of one; converting them around each call would take the host 20 times as long
    as the call itself (measured: 800 arrays, two processes of four CPU devices).
    """

    def __init__(self, mapped, options):
        self._mapped, self._options, self._compiled = mapped, options, {}

    def __call__(self, *args):
        args = jax.tree.map(_of_all, args)
        leaves, tree = jax.tree.flatten(args)
        key = tree, *((x.shape, x.dtype) for x in leaves)
        if key not in self._compiled:
            self._compiled[key] = self.compile(*args)
        return self._compiled[key](*args)

    def compile(self, *args):
        """The program for JAX arrays like these, or shapes (`jax.stages.Compiled`)."""
        types = jax.tree.map(jax.typeof, args)  # shapes would be taken for local arrays
        return self._mapped.lower(*types).compile(self._options)


def forget_programs():
    """Unload the programs of mapped functions that nobody holds any more.

    What was mapped is never freed from the caches of `jax.pmap`. Mapped functions that
    are held keep their programs; other functions compile again when they are called.
    """
    jax.clear_caches()


def replicate(tree):
    """A copy of every array on every device: [...] -> [devices, ...]."""
    count = len(local_devices())

    def put(x):
        x = np.asarray(x)
        return _of_all(np.broadcast_to(x, (count, *x.shape)))

    return jax.tree.map(put, tree)


def local(tree):
    """This process's part as NumPy: [devices, ...] -> [local devices, ...]."""
    return jax.tree.map(
        lambda x: np.concatenate([part.data for part in x.addressable_shards]), tree
    )


def unreplicate(tree):
    """The first device's copy as NumPy on the host: [devices, ...] -> [...].

    The memory is its own and writable, so the device arrays may be donated while it is
    being saved.
    """
    first = jax.tree.map(lambda x: x.addressable_shards[0].data, tree)
    return jax.tree.map(lambda x: np.array(x[0]), jax.device_get(first))


def shard(tree):
    """Cut this process's samples up: [n, ...] -> [devices, n / local devices, ...]."""
    count = len(local_devices())

    def put(x):
        if x.shape[0] % count:
            raise InputError(
                f"a batch of {x.shape[0]} samples cannot be split over {count} local "
                f"devices: take a batch_size that {count} divides"
            )
        return _of_all(x.reshape(count, x.shape[0] // count, *x.shape[1:]))

    return jax.tree.map(put, tree)


def mean(tree):
    """Inside `pmap`: mean over all devices."""
    return jax.lax.pmean(tree, AXIS)


def total(tree):
    """Inside `pmap`: sum over all devices."""
    return jax.lax.psum(tree, AXIS)


def positions(micro_batch_size):
    """Inside `pmap`: places in the global batch of this device's samples, int32 [m]."""
    devices = jax.lax.axis_size(AXIS)
    places = device_samples(micro_batch_size * devices, devices)
    return jnp.asarray(places, jnp.int32)[jax.lax.axis_index(AXIS)]


def reverse(tree):
    """Inside `pmap`: sample i of the global batch becomes sample B - 1 - i.

    Partners are on one device, but for the middle one of an odd number.
    """
    count = jax.lax.axis_size(AXIS)
    partners = [(device, count - 1 - device) for device in range(count)]

    def flip(x):
        half, odd = divmod(len(x), 2)
        if odd and count > 1:
            middle = jax.lax.ppermute(x[half], AXIS, partners)
            x = x.at[half].set(middle)
        return x[::-1]

    return jax.tree.map(flip, tree)


def _of_all(x):
    """NumPy [local devices, ...] of each process as one array [devices, ...] of all."""
    if not isinstance(x, np.ndarray):
        return x
    devices = [
        d for process in range(process_count()) for d in jax.local_devices(process)
    ]
    mesh = jax.sharding.Mesh(np.array(devices), (AXIS,))  # the one of `jax.pmap`
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))
    return jax.make_array_from_process_local_data(sharding, x)
