"""Places of shared memory: taken in turn, and never while somebody reads them."""

import pickle
import threading
import time
from multiprocessing import shared_memory
from types import SimpleNamespace

import pytest

from imagepiece_jax.data import shelf
from imagepiece_jax.data.shelf import Shelf
from imagepiece_jax.errors import InputError


@pytest.fixture
def two():
    made = Shelf(2, 12)
    yield made
    made.close()


def test_what_is_put_is_seen_by_number(two):
    for number in (0, 1):
        two.put(number)[:] = 10 + number
    other = pickle.loads(pickle.dumps(two))  # as another process gets it
    assert (other.look(0) == 10).all() and (other.look(1) == 11).all()
    assert other.look(1).shape == (12,)
    two.free(0)
    two.put(2)[:] = 12  # in the place of number 0
    assert (other.look(2) == 12).all() and (other.look(1) == 11).all()


def test_a_place_is_not_given_away_before_it_is_free(two):
    done = []

    def write():
        done.append(two.put(2).shape)

    two.put(0), two.put(1)
    writer = threading.Thread(target=write)
    writer.start()
    two.free(1)
    time.sleep(0.05)
    assert not done
    two.free(0)
    writer.join(5)
    assert done == [(12,)]


def test_a_later_number_does_not_take_the_place_of_an_earlier_one(two):
    two.put(0), two.free(0)  # now number 2 may come, and then 4
    two.stop()
    with pytest.raises(RuntimeError, match="stopped"):
        two.put(4)
    two.put(2)


def test_places_are_used_many_times(two):
    for number in range(2 * 300):  # more often than a byte counts
        two.put(number)[:] = number % 200
        assert (two.look(number) == number % 200).all()
        two.free(number)


def test_nobody_waits_once_it_is_stopped(two):
    two.put(0)
    two.stop()
    with pytest.raises(RuntimeError, match="stopped"):
        two.put(2)


def test_its_memory_goes_with_it():
    made = Shelf(1, 8)
    name = made._memory.name
    made.close()
    with pytest.raises(FileNotFoundError):
        shared_memory.SharedMemory(name)


def test_too_little_shared_memory_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(shelf, "FOLDER", str(tmp_path))
    usage = SimpleNamespace(free=3 * 10**6)
    monkeypatch.setattr(shelf.shutil, "disk_usage", lambda folder: usage)
    told = f"needs 4 MB in {tmp_path}, which has 3 MB free: .*config.data.workers=0"
    with pytest.raises(InputError, match=told):
        Shelf(4, 10**6)
