"""Every device's and host's samples of a batch; `parallel` moves them there."""

import dataclasses

import numpy as np
from jaxtyping import Int

from imagepiece_jax.errors import InputError


def device_samples(
    num_samples: int, num_devices: int
) -> Int[np.ndarray, "{num_devices} _"]:
    """Assign a batch's samples to devices, one row per device.

    Mixup pairs sample i with num_samples - 1 - i. Both are in mirrored places on one
    device, so no image travels but the middle one of an odd count.
    """
    num_pairs, num_middle = divmod(num_samples // num_devices, 2)
    first_samples = np.arange(num_devices * num_pairs).reshape(num_devices, num_pairs)
    # With an odd count per device, the middle samples of two mirrored devices are a
    # pair.
    middle_samples = np.arange(num_devices * num_middle).reshape(num_devices, -1)
    middle_samples += first_samples.size
    partner_samples = num_samples - 1 - first_samples[:, ::-1]
    return np.concatenate([first_samples, middle_samples, partner_samples], axis=1)


@dataclasses.dataclass(frozen=True)
class Placement:
    """This process's share of every global batch. By default one device has all of it.

    A batch is a sequence of `accumulation` micro-batches. `device_samples` splits every
    micro-batch evenly over the devices of all processes, in process order.
    """

    process_index: int = 0
    process_count: int = 1
    num_local_devices: int = 1
    accumulation: int = 1

    def round_up(self, num_samples: int) -> int:
        """Round `num_samples` up to a multiple of the device count."""
        num_devices = self.process_count * self.num_local_devices
        return -(-num_samples // num_devices) * num_devices

    def sample_positions(
        self, batch_size: int
    ) -> Int[np.ndarray, "devices micro_batches images"]:
        """Positions in the global batch, by local device and micro-batch."""
        num_devices = self.process_count * self.num_local_devices
        if batch_size < 1 or batch_size % (num_devices * self.accumulation):
            divisor = f"devices * accumulation, {num_devices} * {self.accumulation}"
            raise InputError(f"batch_size is {batch_size}, no multiple of {divisor}")
        micro_batch_size = batch_size // self.accumulation
        first_device = self.process_index * self.num_local_devices
        positions_by_device = device_samples(micro_batch_size, num_devices)
        local_positions = positions_by_device[first_device:][: self.num_local_devices]
        micro_batch_starts = micro_batch_size * np.arange(self.accumulation)
        return local_positions[:, None] + micro_batch_starts[:, None]
