"""Layout of a batch over devices."""

import numpy as np


def device_samples(samples, devices):
    """Samples of a batch that each device holds, int64 [devices, samples / devices].

    Mixup pairs sample i with n - 1 - i: both are on one device, in mirrored places, so
    that no image travels. Of an odd number of samples a device the middle one's partner
    is the middle one of the mirrored device.
    """
    half, odd = divmod(samples // devices, 2)
    first = np.arange(devices * half).reshape(devices, half)
    middle = devices * half + np.arange(devices * odd).reshape(devices, odd)
    return np.concatenate([first, middle, samples - 1 - first[:, ::-1]], axis=1)
