"""Programs kept for the next run of the tests: whole, or compiled anew."""

import jax
import numpy as np
import pytest

from tests import programs
from tests.training.test_full_disk import full_disk


@pytest.fixture
def kept(tmp_path):
    """Files of programs in a folder that this process uses in place of its own."""
    with programs.compiled_anew():
        programs.keep(tmp_path)
        yield lambda: [file for file in tmp_path.rglob("*") if file.is_file()]


def compile_a_new_function():
    """One that JAX has not traced, but whose operations are always the same."""
    return float(jax.jit(lambda x: 3 * x + 1)(np.float32(2)))


def test_a_program_is_taken_from_the_folder(kept):
    results = [compile_a_new_function() for _ in range(2)]
    assert results == [7, 7]
    assert len(kept()) == 1
    with programs.compiled_anew():
        kept()[0].write_bytes(b"damaged")
        assert compile_a_new_function() == 7
    with pytest.warns(UserWarning, match="Error reading persistent compilation cache"):
        assert compile_a_new_function() == 7
    assert compile_a_new_function() == 7  # it has been written again


def test_a_full_disk_keeps_nothing(kept):
    with full_disk():
        assert compile_a_new_function() == 7
    assert not kept()


def test_a_large_folder_is_emptied(kept, tmp_path, monkeypatch):
    compile_a_new_function()
    programs.empty_where_large(tmp_path)
    assert kept()
    monkeypatch.setattr(programs, "MAX_BYTES", 10)
    programs.empty_where_large(tmp_path)
    assert not kept()
