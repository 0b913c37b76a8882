"""Copies of arrays on devices: of each array one, however many objects compute with it.

NumPy's arrays that a compiled function gets are copied to its device in every call, and
on a GPU copying a model's weights takes longer than running it.
"""

import threading
import weakref

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

_LOCK = threading.Lock()


class _Copy:
    """An array, and its copy on devices."""

    def __init__(self, array, sharding):
        self.array = array  # held, so that no other array can get its id
        self.on_devices = jax.device_put(array, sharding)
        if isinstance(array, np.ndarray):
            # Who writes to it would change the copy on some devices, and not on others.
            array.setflags(write=False)


# {(id of an array, its place): its _Copy}, as long as an object keeps it
_COPIES = weakref.WeakValueDictionary()


class DeviceCopies:
    """The copies that an object computes with: those of the trees it got last.

    Objects share the copies of arrays that they share, such as two models with the same
    weights. Arrays that were copied are not to be changed; NumPy's are made read-only.
    """

    def __init__(self):
        self._kept = {}  # {devices_key: the copies there of a tree}

    def __reduce__(self):
        return DeviceCopies, ()  # copies stay in their process

    def of(self, tree, sharding: Sharding | None = None):
        """The tree with copies of its arrays; traced arrays are left as they are.

        sharding: where they are; None: on JAX's default device
        """
        devices_key = sharding, jax.config.jax_default_device

        def copied(array):
            if isinstance(array, jax.core.Tracer):
                return array
            key = id(array), devices_key
            copy = _COPIES.get(key)
            if copy is None:
                copy = _Copy(array, sharding)
                _COPIES[key] = copy
            return copy

        with _LOCK:
            copies = jax.tree.map(copied, tree)
            leaves = jax.tree.leaves(copies)
            self._kept[devices_key] = [
                copy for copy in leaves if isinstance(copy, _Copy)
            ]
        return jax.tree.map(lambda copy: getattr(copy, "on_devices", copy), copies)


def sharding_beside(array) -> Sharding | None:
    """The sharding with which weights can be computed with an array.

    `DeviceCopies.of` takes it; None: JAX's default device. An array that is bound to no
    device (NumPy's, one that is not committed, a traced one) follows the weights.
    """
    if not isinstance(array, jax.Array) or isinstance(array, jax.core.Tracer):
        return None
    sharding = array.sharding
    if isinstance(sharding, NamedSharding):  # over several devices: all have weights
        return NamedSharding(sharding.mesh, PartitionSpec())
    if isinstance(sharding, SingleDeviceSharding) and array.committed:
        return sharding
    return None
