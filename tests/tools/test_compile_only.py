import chex
import jax
import jax.numpy as jnp
import pytest

from configs import quickstart
from tests.helpers.run_command import start
from tools import compile_only, hlo

KERNELS = [hlo.GpuKernel(kind, kind, "f32[3]", "ViT") for kind in ("fusion", "move")]


def config(**model):
    cfg = quickstart.get_config()
    cfg.model.update(dtype="bfloat16", embed_dim=32, num_heads=2, depth=4, **model)
    cfg.reduction = "imagepiece:merge_blocks=(0,):prune_blocks=(2,)"
    return cfg


@pytest.fixture
def compiled(monkeypatch):
    """Tracing in place of compiling: a list of (results, arguments) of each call."""
    calls = []
    monkeypatch.setattr(compile_only, "described_gpu", lambda: jax.devices("cpu")[0])
    monkeypatch.setattr(hlo, "list_kernels", lambda text: KERNELS[:1] + text * KERNELS)

    def trace(fn, *args, donate=(), shardings=None):
        calls.append((jax.eval_shape(fn, *args), args))
        return len(calls) - 1

    monkeypatch.setattr(compile_only, "compile_for", trace)
    return calls


def test_every_config_has_a_row(compiled):
    configs = [("one", config()), ("two", config(stem="patch"))]
    _, table, *kernel_lists = compile_only.report_kernels(
        configs, 6, kernels=True
    ).split("\n\n")
    assert [lines.splitlines()[0] for lines in kernel_lists] == ["one", "two"]
    assert [len(lines.splitlines()) for lines in kernel_lists] == [2, 4]
    _, first_row, second_row = (line.split() for line in table.splitlines())
    assert (first_row[:3], first_row[-1]) == (["1", "1", "0"], "one")
    assert (second_row[:3], second_row[-1]) == (["3", "2", "1"], "two")
    for results, (variables, images) in compiled:
        assert (images.shape, images.dtype) == ((6, 16, 16, 3), "bfloat16")
        assert (results.shape, results.dtype) == ((6, 10), "float32")
        kernel = variables["params"]["blocks_0"]["attn"]["q"]["kernel"]
        assert kernel.dtype == "bfloat16"


def test_training_steps_are_compiled_whole(compiled):
    compile_only.report_kernels([("one", config(attention="xla"))], 6, mode="train")
    ((state, metrics), (state_in, batch, teacher)) = compiled[0]
    assert batch["image"].shape == (1, 1, 6, 16, 16, 3)
    assert teacher is None
    chex.assert_shape(metrics["loss"], ())
    chex.assert_trees_all_equal_shapes(state, state_in)


def test_the_function_is_compiled(monkeypatch):
    monkeypatch.setattr(compile_only, "described_gpu", lambda: jax.devices("cpu")[0])
    monkeypatch.setattr(compile_only, "lower_for_cuda", lambda traced: traced.lower())
    options = compile_only.xla_options
    monkeypatch.setattr(options, "compiler_options", lambda platform: {})
    shape = jax.ShapeDtypeStruct((3, 5), jnp.float32)
    (sine,) = hlo.list_kernels(compile_only.compile_for(jnp.sin, shape))
    assert sine.shape.startswith("f32[3,5]")


@pytest.mark.slow
def test_gpu_programs_have_named_kernels():
    pytest.importorskip("jax_plugins")  # JAX's CUDA wheels
    words = ["--configs=deit_s", "--kernels", "--batch-size=8"]
    out = start("-m", "tools.compile_only", *words).ok().out
    assert {"gemm", "attention", "fusion"} <= {*out.split()}
