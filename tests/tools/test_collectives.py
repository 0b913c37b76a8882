"""Collectives of a training step: their number, contents and times."""

import functools
import os
import sys

import jax
import numpy as np
import pytest

from configs import deit_s, deit_s_evit, quickstart
from imagepiece_jax.common import parallel
from imagepiece_jax.config.run import RunConfig
from imagepiece_jax.models.variables import variable_shapes
from imagepiece_jax.training.optimizer import create
from imagepiece_jax.training.report import macs_by_epoch
from imagepiece_jax.training.train_step import batch_shapes, init_state, train_step
from tests import compiling, forked, markdown
from tools import collectives, compile_only, h200, hlo

LAYERS = 2  # of the convolutional stem: patches of 4 pixels


def script(*words, flags=""):
    """This file as a process of its own."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    env["JAX_INCLUDE_FULL_TRACEBACKS_IN_LOCATIONS"] = "1"  # with names of modules
    assert forked.Process([sys.executable, __file__, *words], env=env).wait() == 0


def test_a_step_on_eight_devices():
    flags = f"--xla_force_host_platform_device_count=8 {compiling.QUICK}"
    script("check_cpus", flags=flags)


@pytest.mark.slow
@pytest.mark.skipif(not h200.installed("xla_cuda13"), reason="needs the CUDA wheels")
def test_a_step_on_eight_described_gpus():
    script("check_gpus")


def small():
    config = quickstart.get_config().unlock()
    config.model.update(embed_dim=16, num_heads=2, depth=1, patch_size=4)
    config.reduction.merge_blocks = ()
    config.reduction.prune_blocks = (0,)
    config.update(mixup=0.8, cutmix=1.0, batch_size=16)
    return config


def texts(config):
    """A step as it trains, and as compiled for described GPUs."""
    model = RunConfig.from_config(config).create_train_model(0, parallel.AXIS)
    run = RunConfig.from_config(config)
    rate, optimizer = create(run.optim, 10)
    first = functools.partial(init_state, optimizer=optimizer, with_ema=True)
    state = jax.eval_shape(first, variable_shapes(model, config.image_size))
    batch = batch_shapes(run, (8, 1, 2))
    step = functools.partial(
        train_step, run=run, model=model, optimizer=optimizer, rate=rate
    )

    of_all = jax.tree.map(lambda x: x.update(shape=(8, *x.shape)), state)
    trained = parallel.pmap(step, donate_argnums=(0,), program="step")
    yield trained.compile(of_all, batch, None).as_text()

    mesh = jax.sharding.Mesh(np.array(jax.devices()), (parallel.AXIS,))
    fn, places = compile_only.mapped(step, mesh)
    args = [
        jax.tree.map(lambda x, place=place: x.update(sharding=place), arg)
        for arg, place in zip((state, batch, None), places, strict=True)
    ]
    yield jax.jit(fn, donate_argnums=(0,)).lower(*args).compile().as_text()


def contents(text):
    """What each collective of a step on eight devices holds."""
    assert hlo.host_waits(text) == []
    found = hlo.collectives(text)
    assert {(c.op, c.devices) for c in found} == {("all-reduce", 8)}
    return [collectives.kinds(c) for c in found]


def check_cpus():
    """A CPU's compiler joins some gradients to the statistics of the last layer."""
    trained = list(texts(small()))
    for text in trained:
        found = contents(text)
        assert found.count(("forward batch statistics",)) == LAYERS
        assert sum("backward batch statistics" in kinds for kinds in found) == LAYERS
        assert sum("gradients" in kinds for kinds in found) <= 4
        assert found[-1] == ("gradients", "metrics")
    assert len(trained) == 2
    assert len({*map(collectives.inventory, trained)}) == 1


def check_gpus():
    config = small()
    config.model.dtype = "bfloat16"
    *statistics, last = contents(compile_only.train_text(config, 8))
    there = [("forward batch statistics",)]
    back = [("backward batch statistics",)]
    assert statistics == LAYERS * there + LAYERS * back
    assert last == ("gradients", "metrics")


def collective(size, op="all-reduce", parts=()):
    return hlo.Collective("c", op, size, 8, parts, "")


def test_seconds_of_rings_within_and_between_hosts():
    links = collectives.Links(nvlink=7e9, network=2e9, latency_s=3, network_latency_s=5)
    gigabyte = collective(10**9)
    assert links.seconds(gigabyte, 1) == pytest.approx(3 + 2 * 7 / 8 / 7)
    # Each of two hosts sends half of its sums to the other, and half of the results.
    assert links.seconds(gigabyte, 2) == pytest.approx(3 + 5 + 2 / 8 + 2 * (1 / 2) / 2)
    assert links.seconds(gigabyte, 8) == pytest.approx(3 + 5 + 2 / 8 + 2 * (7 / 8) / 2)
    # The images of all eight GPUs leave their host.
    images = collective(10**9, "collective-permute")
    assert links.seconds(images, 2) == pytest.approx(3 + 5 + 1 / 7 + 8 / 2)


@pytest.mark.parametrize(
    "parts, kinds",
    [
        ([("f32[7]{0}", "a/dot")], "gradients"),
        ([("f32[]", "a/neg"), ("f32[7,2]{1,0}", "a/dot")], "gradients, metrics"),
        ([("f32[2,8]{1,0}", "jvp(V)/norm_3/psum")], "forward batch statistics"),
        (
            [("f32[2,8]{1,0}", "transpose(jvp(V))/norm_3/div")],
            "backward batch statistics",
        ),
        ([("f32[8]{0}", "transpose(jvp(V))/norm_3/reduce_sum")], "gradients"),
    ],
)
def test_kinds_of_contents(parts, kinds):
    parts = tuple(hlo.Part(*part) for part in parts)
    assert ", ".join(collectives.kinds(collective(8, parts=parts))) == kinds


TEXT = """HloModule jit_f

ENTRY %main (x: f32[1000,1000]) -> f32[1000,1000] {
  %x = f32[1000,1000]{1,0} parameter(0)
  %y = f32[1000,1000]{1,0} copy(%x)
  %r = f32[1000,1000]{1,0} all-reduce(%y), replica_groups={{0,1,2,3,4,5,6,7}}
  ROOT %z = f32[1000,1000]{1,0} copy(%r)
}
"""


def test_the_plan_adds_up():
    assert 1e6 * collectives.step_seconds(TEXT) == pytest.approx(8)
    links = collectives.Links(7 / 8 * 1e12, 4e11, 0, 0)
    cells = collectives.plan("deit", TEXT, 32, (1, 2), links)
    # 8 us for 2 * 7/8 * 4 MB at 875 GB/s; 10 us more for 4 MB at 400 GB/s.
    assert cells[0][:4] == ["deit", 32, 1, "256"]
    assert cells[0][6:] == ["50%", "16,000,000", "1.00"]
    assert cells[1][2:4] == [2, "512"]
    assert cells[1][6] == "69%"
    assert float(cells[1][8]) == pytest.approx(2 * 16 / 26, abs=0.005)


def test_the_cost_of_whole_runs_adds_up(monkeypatch):
    """DeiT's recipe in steps of 8 us and more; EViT's rate warms up."""
    texts = {"none": TEXT, "evit": TEXT.replace("1000,1000", "500,500")}
    compiled = []

    def train_text(config, gpus):
        compiled.append((config.reduction.name, config.batch_size, gpus))
        text = texts[config.reduction.name]
        return text if gpus > 1 else text.replace("all-reduce", "bitcast")

    monkeypatch.setattr(compile_only, "train_text", train_text)
    links = collectives.Links(7 / 8 * 1e12, 4e11, 0, 0)
    configs = [("deit", deit_s.get_config()), ("evit", deit_s_evit.get_config())]
    table = collectives.run_costs(configs, 128, [1, 2], links, kilobytes=100)
    heading, *rows = table.splitlines()
    assert heading.endswith("| 2 x 8: images/s | hours |")
    dense, evit = (markdown.cells(row) for row in rows[1:])
    images = 300 * 1251 * 1024
    assert dense[:3] == ["deit", "10.6", f"{images / 3 * 100e3 / 1e9:,.0f}"]

    def cells(step_us, batch):
        rate = batch / step_us * 1e6
        hours = images / rate / 3600
        return [f"{rate:,.0f}", f"{hours:.2f}" if hours < 1 else f"{hours:.1f}"]

    # Two copies of 4 us; 8 us for the sums within a host, 10 us more for two hosts.
    assert dense[3:] == cells(8, 1024) + cells(16, 1024) + cells(26, 2048)
    # All tokens for ten epochs, 5 us for 190, and in between by MACs.
    macs = macs_by_epoch(RunConfig.from_config(configs[1][1]))
    share = (sum(macs) / 300 - macs[-1]) / (macs[0] - macs[-1])
    assert 10 / 300 < share < 110 / 300
    assert evit[3:5] == cells(5 + share * 3, 1024)
    assert compiled.count(("none", 1024, 1)) == 1  # both need it


def test_the_inventory_has_a_row_per_kind():
    *_, row = collectives.inventory(TEXT).splitlines()
    assert row == "| gradients | all-reduce | 1 | 1 | 4,000,000 |"


if __name__ == "__main__":
    {"check_cpus": check_cpus, "check_gpus": check_gpus}[sys.argv[1]]()
