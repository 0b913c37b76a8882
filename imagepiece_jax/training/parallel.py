"""Who computes which part of the batch? Devices, processes, and what they exchange.

The project's only mention of `jax.pmap` and `jax.distributed`: moving to another way of
running on many devices means rewriting this file. Layout: of a global batch of B
samples over W devices (all processes together), device d holds samples d B/W .. (d + 1)
B/W - 1.
"""

import jax
import jax.numpy as jnp
import numpy as np

from imagepiece_jax.errors import InputError

AXIS = "devices"


def initialize(coordinator=None, num_processes=None, process_id=None):
    """Join the other processes of this run; call it before anything else uses JAX.

    `coordinator` None: this process is alone, nothing happens. "auto": SLURM, Open MPI
    or a TPU pod says who takes part. "host:port" of process 0: then `num_processes` and
    `process_id` (0 .. num_processes - 1) are needed.
    """
    if coordinator is None:
        if num_processes is not None or process_id is not None:
            raise InputError(
                f"--coordinator is missing although --num_processes is {num_processes} "
                f"and --process_id {process_id}: give HOST:PORT of process 0, or auto"
            )
        return
    if coordinator == "auto":
        try:
            jax.distributed.initialize()
        except (ValueError, RuntimeError) as error:
            raise InputError(
                "--coordinator is auto, but neither SLURM nor Open MPI is found here: "
                "give HOST:PORT of process 0, --num_processes and --process_id"
            ) from error
        return
    if num_processes is None or process_id not in range(num_processes):
        raise InputError(
            f"--coordinator {coordinator} needs --num_processes, found "
            f"{num_processes}, and a --process_id from 0 to num_processes - 1, found "
            f"{process_id}"
        )
    jax.distributed.initialize(coordinator, num_processes, process_id)


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
    """Devices of this process, in the order of the leading axis of `shard`."""
    return jax.local_devices()


def device_count():
    """W: devices of all processes together."""
    return jax.device_count()


def pmap(fn, *, donate_argnums=(), static_broadcasted_argnums=(), in_axes=0):
    """Compile `fn` for every device; inside, the functions below know the others.

    Arguments and results carry a leading axis of local devices. Donated arguments come
    from `replicate`, `shard` or an earlier call, else they would be copied.
    """
    return jax.pmap(
        fn,
        axis_name=AXIS,
        donate_argnums=donate_argnums,
        static_broadcasted_argnums=static_broadcasted_argnums,
        in_axes=in_axes,
    )


def replicate(tree):
    """A copy of every array on every local device: [...] -> [local devices, ...]."""
    count = len(local_devices())

    def put(x):
        x = np.asarray(x)
        return jax.device_put(np.broadcast_to(x, (count, *x.shape)), _sharding())

    return jax.tree.map(put, tree)


def unreplicate(tree):
    """The first device's copy as NumPy on the host: [local devices, ...] -> [...].

    The memory is its own and writable, so the device arrays may be donated while it is
    being saved.
    """
    first = jax.tree.map(lambda x: x.addressable_shards[0].data, tree)
    return jax.tree.map(lambda x: np.array(x[0]), jax.device_get(first))


def shard(tree):
    """Cut this process's samples up: [n, ...] -> [local devices, n / devices, ...]."""
    count = len(local_devices())

    def put(x):
        if x.shape[0] % count:
            raise InputError(
                f"a batch of {x.shape[0]} samples cannot be split over {count} local "
                f"devices: take a batch_size that {count} divides"
            )
        x = x.reshape(count, x.shape[0] // count, *x.shape[1:])
        return jax.device_put(x, _sharding())

    return jax.tree.map(put, tree)


def mean(tree):
    """Inside `pmap`: mean over all devices."""
    return jax.lax.pmean(tree, AXIS)


def total(tree):
    """Inside `pmap`: sum over all devices."""
    return jax.lax.psum(tree, AXIS)


def positions(micro_batch_size):
    """Inside `pmap`: places in the global batch of this device's samples, int32 [m]."""
    first = jax.lax.axis_index(AXIS) * micro_batch_size
    return first + jnp.arange(micro_batch_size, dtype=jnp.int32)


def reverse(tree):
    """Inside `pmap`: sample i of the global batch becomes sample B - 1 - i."""
    count = jax.lax.axis_size(AXIS)
    partners = [(device, count - 1 - device) for device in range(count)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, AXIS, partners)[::-1], tree)


def _sharding():
    mesh = jax.sharding.Mesh(np.array(local_devices()), (AXIS,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))
