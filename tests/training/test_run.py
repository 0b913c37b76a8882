"""The parts of a run: its programs, and the data that it is resumed with."""

import functools

import jax
import numpy as np
import pytest

from configs import quickstart
from imagepiece_jax.common import parallel
from imagepiece_jax.errors import InputError
from imagepiece_jax.training import from_config, run


def loaded():
    return len(jax.devices()[0].client.live_executables())


def step(state, batch, teacher, tokens):
    return 0 * state + tokens * parallel.mean(batch), batch


def test_one_program_of_a_rate_that_warms_up_stays_loaded(tmp_path, monkeypatch):
    """EViT's, from 65 to 45 tokens of the last blocks; those of evaluation stay too."""
    config = quickstart.get_config()
    config.reduction = {"name": "evit", "keep_rate": 0.7, "blocks": (1,)}
    config.reduction.update(rate_warmup_start=1, rate_warmup_epochs=4)
    course = run.Run(config, tmp_path)
    course.optimizer = course.rate = course.teacher_model = None

    def tiny(config, model, *rest):
        return functools.partial(step, tokens=model.plan[-1].mlp_tokens)

    monkeypatch.setattr(from_config, "step", tiny)
    number, state = parallel.replicate((np.float32(1), np.float32(0)))
    other = parallel.pmap(lambda x: x + 1)
    other(number)
    counts, tokens = [], []
    for epoch in range(7):
        program = course.compiled_step(epoch)
        state, _ = program(state, number, None)
        tokens.append(int(parallel.unreplicate(state)))
        counts.append(loaded())
        assert course.compiled_step(epoch) is program
    assert tokens[0] == tokens[1] == 65 and tokens[-2:] == [46, 46]
    assert len(set(tokens)) == 5
    assert max(counts[2:]) <= counts[0]
    before = loaded()
    other(number)
    assert loaded() == before  # compiled once


def test_a_run_is_resumed_with_as_many_images_as_before(tmp_path):
    course = run.Run(quickstart.get_config(), tmp_path)
    course._check_images([1438, 359], [1438, 359])
    told = "digits has 1438 training and 359 test images now, but the run in .* was "
    with pytest.raises(InputError, match=told + "begun with 1437 and 359: allowed are"):
        course._check_images([1437, 359], [1438, 359])
