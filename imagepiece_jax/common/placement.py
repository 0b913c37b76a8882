"""Every device's and host's samples of a batch; `parallel` moves them there."""

import dataclasses

import numpy as np
from jaxtyping import Int

from imagepiece_jax.errors import InputError


def device_samples(samples: int, devices: int) -> Int[np.ndarray, "{devices} _"]:
    """Assign a batch's samples to devices, one row per device.

    Mixup pairs sample i with n - 1 - i. Both are in mirrored places on one device, so
    no image travels but the middle one of an odd count.
    """
    half, odd = divmod(samples // devices, 2)
    first_half = np.arange(devices * half).reshape(devices, half)
    # With an odd count per device, the middle samples of two mirrored devices are a
    # pair.
    middle = devices * half + np.arange(devices * odd).reshape(devices, odd)
    partners = samples - 1 - first_half[:, ::-1]
    return np.concatenate([first_half, middle, partners], axis=1)


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

    def round_up(self, samples: int) -> int:
        """Round `samples` up to a multiple of the device count."""
        devices = self.process_count * self.local_devices
        return -(-samples // devices) * devices

    def sample_positions(
        self, batch_size: int
    ) -> Int[np.ndarray, "devices micro_batches images"]:
        """Positions in the global batch, by local device and micro-batch."""
        devices = self.process_count * self.local_devices
        if batch_size < 1 or batch_size % (devices * self.accumulation):
            raise InputError(
                f"batch_size is {batch_size}; it must be a positive multiple of "
                f"devices * accumulation steps, {devices} * {self.accumulation}"
            )
        micro_batch = batch_size // self.accumulation
        first_device = self.process_index * self.local_devices
        samples = device_samples(micro_batch, devices)
        own_samples = samples[first_device : first_device + self.local_devices]
        micro_batch_starts = micro_batch * np.arange(self.accumulation)
        return own_samples[:, None] + micro_batch_starts[:, None]
