import numpy as np

from imagepiece_jax.kernels.merging import DROPPED
from imagepiece_jax.reduction import provenance
from imagepiece_jax.reduction.state import Assignment, Masking, Mixing


def test_slots_are_followed_until_tokens_overlap():
    """A merge, a drop, then a step that mixes or masks."""
    merge = Assignment(slot_of_token=np.int32([[0, 1, 0, 2]]), n_out=3)
    drop = Assignment(slot_of_token=np.int32([[1, DROPPED, 0]]), n_out=2)
    for overlapping in (Mixing(np.ones((1, 1, 2))), Masking(np.ones((1, 2)))):
        slots = provenance.trace_patches((merge, drop, overlapping, drop), 1, 4)
        assert [slot.tolist() for slot in slots[:3]] == [
            [[0, 1, 2, 3]],
            [[0, 1, 0, 2]],
            [[1, DROPPED, 1, 0]],
        ]
        assert slots[3:] == [None, None]
    (initial,) = provenance.trace_patches((), 2, 3)
    assert initial.tolist() == [[0, 1, 2]] * 2
