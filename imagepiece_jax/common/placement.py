"""Every device's and host's samples of a batch; `parallel` moves them there."""

import dataclasses

import numpy as np

from imagepiece_jax.errors import InputError


def device_samples(samples, devices):
    """Assign a batch's samples to devices: int64 [devices, samples / devices].

    Mixup pairs sample i with n - 1 - i. Both are in mirrored places on one device, so
    no image travels.
    """
    half, odd = divmod(samples // devices, 2)
    first = np.arange(devices * half).reshape(devices, half)
    # With an odd count per device, the middle samples of two mirrored devices are a
    # pair.
    middle = devices * half + np.arange(devices * odd).reshape(devices, odd)
    partners = samples - 1 - first[:, ::-1]
    return np.concatenate([first, middle, partners], axis=1)


@dataclasses.dataclass(frozen=True)
class Placement:
    """This process's share of every global batch. By default one device has all of it.

    A batch is a sequence of `accumulation` micro-batches. `device_samples` splits every
    micro-batch evenly over the devices of all processes, in process order.
    """

    process_index: int = 0
    process_count: int = 1
    local_devices: int = 1
    accumulation: int = 1

    def whole(self, samples: int) -> int:
        """Round `samples` up to a multiple of the device count."""
        devices = self.process_count * self.local_devices
        return -(-samples // devices) * devices

    def positions(self, batch_size: int) -> np.ndarray:
        """Positions in the global batch: int64 [local_devices, accumulation, m]."""
        devices = self.process_count * self.local_devices
        if batch_size < 1 or batch_size % (devices * self.accumulation):
            raise InputError(
                f"batch_size is {batch_size}; it must be a positive multiple of "
                f"devices * accumulation steps, {devices} * {self.accumulation}"
            )
        micro_batch = batch_size // self.accumulation
        first = self.process_index * self.local_devices
        samples = device_samples(micro_batch, devices)
        mine = samples[first : first + self.local_devices]
        starts = micro_batch * np.arange(self.accumulation)
        return mine[:, None] + starts[:, None]
