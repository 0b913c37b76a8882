"""How do pixels get from one process to another without being sent?

They are written to memory that both processes see, and only the number of their place
is sent. The places are made once and used in turn: fresh shared memory for every few
images costs more time than shrinking and cropping them.
"""

import os
import shutil
import time
from multiprocessing import shared_memory

import numpy as np

from imagepiece_jax.errors import InputError

FOLDER = "/dev/shm"  # where Linux keeps shared memory; a container may have little
WAIT = 0.001  # seconds between two looks at a place that is not free yet


class Shelf:
    """`places` arrays of uint8 [largest]; number n has place n % places.

    Who makes number n asks for its place by `put`, which waits until number n - places
    is done with; who reads it says so by `free`, number by number. Other processes get
    the shelf by pickling; the one that made it must `close` it, and `hide` it once all
    others have it. InputError where there is too little shared memory for it.
    """

    def __init__(self, places, largest, name=None):
        self.places, self.largest, self._named = places, largest, name is None
        size = places * largest + places + 1
        if name is None:
            _check_space(size)
        self._memory = shared_memory.SharedMemory(name, create=name is None, size=size)

    def __reduce__(self):
        return Shelf, (self.places, self.largest, self._memory.name)

    def put(self, number):
        """The array to write `number` to; RuntimeError once the shelf is stopped."""
        place, turn = number % self.places, number // self.places
        # Not merely whether it is free: of two numbers in flight the later one, if it
        # is made sooner, must not take the place of the one that is read first.
        while self._byte(place) != turn % 256:
            if self._byte(self.places):
                raise RuntimeError("the shelf is stopped")
            time.sleep(WAIT)
        return self.look(number)

    def look(self, number):
        """The array of number `number`."""
        offset = number % self.places * self.largest
        return np.ndarray(self.largest, np.uint8, self._memory.buf, offset)

    def free(self, number):
        """Give the place of `number` to number + places."""
        self._set_byte(number % self.places, (number // self.places + 1) % 256)

    def stop(self):
        """Let nobody wait for a place any more."""
        self._set_byte(self.places, 1)

    def hide(self):
        """Take its name away: nobody else can open it.

        Without a name nothing is left in memory when all processes are killed at once.
        """
        if self._named:
            self._named = False
            self._memory.unlink()

    def close(self):
        """Give the memory back. Arrays of it must not be used any more."""
        self.hide()
        self._memory.close()

    # Behind the places one byte for each, how often it was freed, and one: stopped.
    def _byte(self, index):
        return self._memory.buf[self.places * self.largest + index]

    def _set_byte(self, index, value):
        self._memory.buf[self.places * self.largest + index] = value


def _check_space(size):
    """Too little shows here, and not as a process that dies when it writes."""
    if os.path.isdir(FOLDER) and (free := shutil.disk_usage(FOLDER).free) < size:
        raise InputError(
            f"reading in processes needs {size / 1e6:,.0f} MB in {FOLDER}, which has "
            f"{free / 1e6:,.0f} MB free: allowed are more room (a container's "
            "--shm-size) or config.data.workers=0, which reads in threads alone"
        )
