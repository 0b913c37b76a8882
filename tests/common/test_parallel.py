"""Many devices behave like one, in processes with eight devices or two each."""

import functools
import os
import sys
import types
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.common import parallel, xla_options
from imagepiece_jax.common.placement import device_samples
from imagepiece_jax.data.source import ArraySource
from imagepiece_jax.errors import InputError, RunError
from imagepiece_jax.training.cluster import job
from tests.helpers import compiling, forked_processes
from tests.helpers.refused_calls import refused


def start(devices, *arguments):
    """Run this file as a script in a new process with some CPU devices."""
    flags = f"{compiling.QUICK} --xla_force_host_platform_device_count={devices}"
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    return forked_processes.fork([__file__, *arguments], env=env)


def test_eight_devices():
    assert forked_processes.statuses([start(8, "eight")], timeout=120) == [0]


@pytest.mark.slow
@pytest.mark.usefixtures("quickly_begun")
def test_two_processes_of_two_devices():
    port = str(forked_processes.free_port())
    children = [start(2, "process", process, port) for process in "01"]
    assert forked_processes.statuses(children, timeout=300) == [0, 0]


def test_one_device_is_a_special_case_of_many():
    check_exchange(devices=1)
    check_round_trip(devices=1)
    assert parallel.is_main() and parallel.gather_texts("alone") == ["alone"]


def check_exchange(devices, first=0, local=None):
    """Global batch 0 .. 3 W - 1, three samples a device, two numbers a sample."""
    local = local or devices
    samples = device_samples(3 * devices, devices).ravel()
    batch = np.stack([samples, -samples], axis=1)[3 * first : 3 * (first + local)]

    def step(x):
        positions = parallel.micro_batch_positions(3, jnp.int32(0))
        return positions, parallel.reverse_batch({"x": x, "i": x[:, 0]})

    outputs = parallel.pmap(step, program_name="step")(parallel.shard_samples(batch))
    positions, back = parallel.local_rows(outputs)
    local_samples = samples[3 * first : 3 * (first + local)]
    assert positions.dtype == jnp.int32
    np.testing.assert_array_equal(np.ravel(positions), local_samples)
    np.testing.assert_array_equal(np.ravel(back["i"]), 3 * devices - 1 - local_samples)
    second = np.reshape(back["x"], (-1, 2))[:, 1]
    np.testing.assert_array_equal(second, -back["i"].ravel())


def check_round_trip(devices, everywhere=None):
    """Replicated and back: values, types, separate memory; donation copies nothing."""
    state = {"w": np.arange(1 << 18, dtype=np.float32), "step": np.asarray(4, np.int32)}
    replicated = parallel.replicate(state)
    assert replicated["w"].shape == (everywhere or devices, 1 << 18)
    assert parallel.local_rows(replicated)["w"].shape == (devices, 1 << 18)
    plus_one = functools.partial(jax.tree.map, lambda x: x + 1)
    grow = parallel.pmap(plus_one, donate_argnums=0, program_name="step")
    grown = grow(replicated)
    host = parallel.unreplicate(grown)
    last = grow(grow(grown))  # must not write into `host`
    assert replicated["w"].is_deleted() and grown["w"].is_deleted()
    for increment, tree in ((1, host), (3, parallel.unreplicate(last))):
        assert tree["w"].flags.writeable
        expected = {"w": np.arange(1 << 18) + increment, "step": 4 + increment}
        chex.assert_trees_all_equal(tree, expected)
        chex.assert_trees_all_equal_dtypes(tree, state)


def check_eight():
    assert parallel.device_count() == len(parallel.local_devices()) == 8
    check_exchange(devices=8)
    check_round_trip(devices=8)


def check_process(process, port):
    process = int(process)
    # These stand in for a GPU's options.
    xla_options.PLATFORM_OPTIONS["cpu"] = compiling.HARMLESS
    with job.joined_cluster(f"127.0.0.1:{port}", 2, process):
        assert (jax.process_index(), jax.process_count()) == (process, 2)
        assert parallel.is_main() == (process == 0)
        assert (parallel.device_count(), len(parallel.local_devices())) == (4, 2)
        check_exchange(devices=4, first=2 * process, local=2)
        jax.clear_caches()  # like a keep-rate warm-up
        check_round_trip(devices=2, everywhere=4)
        assert parallel.gather_texts(("ä" * 3, "")[process]) == ["äää", ""]
        check_agreement(process)


def check_agreement(process):
    """Both processes refuse a difference, except in fields that may differ."""
    config = {"lr": 0.1, "model": {"blocks": (1, 2)}, "data": {}}
    config["data"] |= dict.fromkeys(("dir", "workers", "threads"), process)
    execution = types.SimpleNamespace(attention_impl="xla")
    model = types.SimpleNamespace(execution=execution)

    def check_settings(config=config, names=("ant", "bee"), count=7):
        train = ArraySource(np.zeros((count, 1, 1, 3)), -1, 2, names)
        data = types.SimpleNamespace(train_source=train, val_source=train)
        job.check_same_settings(False, config, model, data)

    check_settings()
    with refused("config.lr is 1 on process 1, but 0 on"):
        check_settings(config | {"lr": process})
    with refused("config.parts is missing on process 1"):
        check_settings(config | {"parts": [{}, {"gelu": "tanh"}][process]})
    with refused("training images is 6 on process 1, but 7 on"):
        check_settings(count=7 - process)
    with refused("checksum of the names of the classes is"):
        check_settings(names=("ant", f"bee{process}"))
    execution.attention_impl = ("cudnn", "xla")[process]
    with refused("attention as ", " is xla on process 1, but cudnn"):
        check_settings()
    assert parallel.share_main_decision(lambda: {"process": process}) == {"process": 0}

    arrays = {"v": np.arange(2.0), "w": np.arange(3.0)}
    job.check_same_start(0, arrays)
    with refused("step to resume from is 5 on process 1"):
        job.check_same_start(4 + process, arrays)
    for changed in arrays:  # not just the last array
        with refused("checksum of the first weights is"):
            job.check_same_start(4, arrays | {changed: arrays[changed] + process})

    sentence = "disk is full" if process == 0 else r"process 0 stopped: disk is full \("
    for error in (RunError, OSError):
        with pytest.raises((InputError, error), match=sentence):
            with parallel.shared_errors():
                if process == 0:
                    raise error("disk is full")
                parallel.check_same_values({})


if __name__ == "__main__":
    warnings.simplefilter("error")
    {"eight": check_eight, "process": check_process}[sys.argv[1]](*sys.argv[2:])


def test_a_model_program_has_its_platforms_compiler_options(monkeypatch):
    double = parallel.pmap(lambda x: 2 * x, program_name="step")
    double.compile(np.empty(1, np.float32))
    assert double.working_bytes >= 0
    options = {"cpu": {"no_such_option": 1}}
    monkeypatch.setattr(xla_options, "PLATFORM_OPTIONS", options)
    # Compiled before all calls; another shape is compiled anew.
    assert parallel.unreplicate(double(parallel.replicate(np.float32(3)))) == 6
    with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
        double.compile(np.empty((1, 2), np.float32))
