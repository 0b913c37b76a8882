"""Estimated times of kernels, and compilation for a described GPU."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies

from imagepiece_jax.errors import InputError, RunError
from tests.command import start
from tools import h200, hlo

TEXT = """HloModule jit_f

ENTRY %main (x: f32[1000,1000]) -> f32[1000,1000] {
  %x = f32[1000,1000]{1,0} parameter(0)
  %y = f32[1000,1000]{1,0} copy(%x), metadata={op_name="jit(f)/ViT/norm/copy"}
  %z = f32[1000,1000]{1,0} add(%x, %y)
  ROOT %w = f32[1000,1000]{1,0} copy(%z)
}
"""


KERNEL = hlo.GpuKernel("k", "fusion", op="", shape="", bytes=0, flops=0, source="")


@pytest.mark.parametrize(
    "fields, microseconds",
    [
        ({}, 2),
        ({"bytes": 4_000_000}, 2 + 1),
        ({"flops": 600e6, "kind": "gemm"}, 2 + 1),
        ({"flops": 600e6, "kind": "attention"}, 2 + 2),
        ({"flops": 600e6, "bytes": 12_000_000, "kind": "gemm"}, 2 + 3),
    ],
)
def test_a_kernel_takes_its_launch_and_its_bytes_or_products(fields, microseconds):
    kernel = dataclasses.replace(KERNEL, **fields)
    assert h200.estimate(kernel) == pytest.approx(1e-6 * microseconds)


def test_summary_adds_up_by_kind():
    """Arrays of 4 MB: two copies move 8 MB in 4 us, one sum 12 MB in 5."""
    assert h200.summary(TEXT) == {
        "move": (2, pytest.approx(0.008)),
        "fusion": (1, pytest.approx(0.005)),
    }


def test_table_has_a_line_per_kernel():
    first, *lines = h200.table(TEXT).splitlines()
    assert first.split()[:3] == ["kind", "us", "MB"]
    assert lines[0].split() == "0 move 4.0 8.0 f32[1000,1000]{1,0} y, norm/copy".split()
    assert [line.split()[1] for line in lines] == ["move", "fusion", "move"]


@pytest.mark.parametrize("error", [NotImplementedError, RuntimeError])
@pytest.mark.parametrize(
    "plugins, message",
    [
        ((), r'pip install "imagepiece_jax\[gpu\]"'),
        (("xla_cuda12",), "JAX_SKIP_CUDA.*=1"),
    ],
)
def test_missing_wheels_are_reported_in_one_sentence(
    monkeypatch, error, plugins, message
):
    def refuse(*args, **options):
        raise error("topology not implemented for cuda")

    monkeypatch.setattr(topologies, "get_topology_desc", refuse)
    monkeypatch.setattr(h200, "installed", lambda name: name in plugins)
    monkeypatch.setenv("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    with pytest.raises(InputError, match=f"H200.*CUDA wheels.*{message}"):
        h200.devices.__wrapped__()


@pytest.fixture
def here(monkeypatch):
    """This computer in place of the described GPU."""
    monkeypatch.setattr(h200, "devices", lambda: jax.devices("cpu"))
    monkeypatch.setattr(h200, "lower", lambda traced: traced.lower())


def test_a_compile_error_is_one_line(here):
    with pytest.raises(RunError, match="H200: .*no_such_option") as caught:
        h200.compile_for(jnp.sin, jnp.ones(3), options={"no_such_option": True})
    assert "\n" not in str(caught.value)


def test_compiled_text_is_of_the_function(here):
    shape = jax.ShapeDtypeStruct((3, 5), jnp.float32)
    text = h200.compile_for(jnp.sin, shape)
    (sine,) = hlo.kernels(text)
    assert sine.shape.startswith("f32[3,5]")
    assert sine.bytes == 2 * 4 * 15


PROGRAM = """
import jax, jax.numpy as jnp
from tools import h200, hlo
h200.device()
x = jax.ShapeDtypeStruct((512, 1024), "bfloat16")
w = jax.ShapeDtypeStruct((1024, 256), "bfloat16")
qkv = jax.ShapeDtypeStruct((4, 65, 6, 64), "bfloat16")
def f(x, w, q):
    attention = jax.nn.dot_product_attention(q, q, q, implementation="cudnn")
    return jax.nn.relu(x @ w), attention
options = {"xla_gpu_enable_triton_gemm": False}
for k in hlo.kernels(h200.compile_for(f, x, w, qkv, options=options)):
    print(k.kind, k.bytes, k.flops)
"""


@pytest.mark.slow
@pytest.mark.skipif(not h200.installed("xla_cuda13"), reason="needs the CUDA wheels")
def test_a_program_compiled_for_the_gpu():
    lines = start("-c", PROGRAM).ok().out.splitlines()
    product = 2 * (512 * 1024 + 1024 * 256 + 512 * 256), 2.0 * 512 * 1024 * 256
    assert f"gemm {product[0]} {product[1]}" in lines
    tiles = 4 * 4.0 * 6 * 128**2 * 64
    one_in_one_out = 2 * 2 * (4 * 65 * 6 * 64)
    assert f"attention {one_in_one_out} {tiles}" in lines
