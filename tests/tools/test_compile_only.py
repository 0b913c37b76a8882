"""The report of programs compiled for an H200: what is compiled, and its sums."""

import itertools
import types

import chex
import jax
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from configs import quickstart
from imagepiece_jax.config.run import RunConfig
from imagepiece_jax.models import attention
from imagepiece_jax.reduction.state import start
from tests.benchmark.small import TINY
from tests.command import call
from tools import compile_only, h200

TEXT = """HloModule jit_f

ENTRY %main (x: f32[1000,1000]) -> f32[1000,1000] {
  %x = f32[1000,1000]{1,0} parameter(0)
LINES
  ROOT %v = f32[1000000]{0} bitcast(%x)
}
"""
ADD = "  %s = f32[1000,1000]{1,0} add(%x, %x)"  # 4 MB in, 4 MB out: 4 us
COPY = "  %c = f32[1000,1000]{1,0} copy(%x)"


def config(**model):
    cfg = quickstart.get_config().unlock()
    cfg.model.update(dtype="bfloat16", embed_dim=32, num_heads=2, depth=4, **model)
    cfg.reduction.merge_blocks = (0,)
    cfg.reduction.prune_blocks = (2,)
    return cfg


@pytest.fixture
def compiled(monkeypatch):
    """Tracing in place of compiling; a list of (results, arguments) of each call."""
    calls = []
    texts = [ADD, "\n".join([ADD, COPY, COPY])]
    monkeypatch.setattr(h200, "devices", lambda count=1: jax.devices("cpu")[:count])

    def trace(fn, *args, options=None, donate=(), places=None):
        assert options == compile_only.OPTIONS
        calls.append((jax.eval_shape(fn, *args), args))
        return TEXT.replace("LINES", texts[len(calls) - 1])

    monkeypatch.setattr(h200, "compile_for", trace)
    return calls


def test_one_row_a_config_compared_with_the_first(compiled):
    patch_stem = config(stem="patch")
    configs = [("one", config()), ("two", patch_stem)]
    text = compile_only.report(configs, 6, kernels=True)
    note, title, table, *listed = text.split("\n\n")
    assert [lines.splitlines()[0] for lines in listed] == ["one", "two"]
    assert "not run" in note and "estimates" in note
    assert title.startswith("mode inference, batch size 6")
    heading, one, two = table.splitlines()
    assert heading.split("  ")[-1] == "config"
    assert one.split()[:4] == ["1", "0.004", "0.004", "(1)"]
    assert (one.split()[-1], one.split()[-2]) == ("one", "1.000")
    assert two.split()[:2] == ["3", "0.012"]
    assert two.split()[-2:] == ["0.333", "two"]
    for results, (variables, images) in compiled:
        assert (images.shape, images.dtype) == ((6, 16, 16, 3), "bfloat16")
        assert (results.shape, results.dtype) == ((6, 10), "float32")
        assert (
            variables["params"]["blocks_0"]["attn"]["q"]["kernel"].dtype == "bfloat16"
        )


@pytest.mark.parametrize("requested, form", [(None, "tanh"), ("exact", "exact")])
def test_the_program_has_the_gelu_of_the_device(compiled, monkeypatch, requested, form):
    seen = []
    gpu = types.SimpleNamespace(platform="gpu")
    monkeypatch.setattr(h200, "device", lambda: gpu)

    def place(model):
        seen.append(model.arch.gelu)
        return model

    model = RunConfig.from_config(compile_only.unplaced(config())).create_model()
    compile_only.forward_text(model, 2, 16, "bfloat16", place, gelu=requested)
    assert seen[-1] == form


def test_a_training_step_is_compiled_whole(compiled):
    compile_only.report([("one", config(attention="xla"))], 6, mode="train")
    ((state, metrics), (given, batch, teacher)) = compiled[0]
    assert batch["image"].shape == (1, 1, 6, 16, 16, 3)
    assert teacher is None
    chex.assert_shape(metrics["loss"], ())
    chex.assert_trees_all_equal_shapes(state, given)


def test_unpadded_trains_attention_with_odd_lengths(monkeypatch):
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91300)
    layer = attention.Attention(64, num_heads=1, backend="cudnn", dtype="bfloat16")
    x = jax.ShapeDtypeStruct((2, 7, 64), "bfloat16")
    state = jax.eval_shape(start, x)
    variables = jax.eval_shape(layer.init, jax.random.key(0), x, state)

    def loss(variables, x, state):
        return layer.apply(variables, x, state, train=True)[0].astype("float32").sum()

    def lengths():
        """Lengths of the queries in cuDNN's calls, forward and backward."""
        program = str(jax.make_jaxpr(jax.grad(loss))(variables, x, state))
        assert "dot_product_attention_bwd" in program
        return {n for n in (7, 8) if f"bf16[2,{n},1,64]" in program}

    assert 8 in lengths()
    with compile_only.unpadded():
        assert lengths() == {7}
    assert 8 in lengths()


def test_attention_is_that_of_the_described_gpu(monkeypatch):
    gpu = types.SimpleNamespace(platform="gpu", compute_capability="9.0")
    monkeypatch.setattr(h200, "devices", lambda: [gpu])

    def backend(**model):
        cfg = config(**model)
        unplaced = RunConfig.from_config(compile_only.unplaced(cfg)).create_model()
        return compile_only.placed(unplaced, cfg).backend

    assert backend() == backend(attention="cudnn") == "cudnn"
    assert backend(attention="xla") == "xla"
    wide = config()
    wide.model.dtype = "float32"
    unplaced = RunConfig.from_config(compile_only.unplaced(wide)).create_model()
    assert compile_only.placed(unplaced, wide).backend == "xla"


def test_the_command_reports_every_size_and_mode(monkeypatch):
    calls = []

    def report(configs, batch_size, mode, kernels, gelu):
        dtypes = [(name, config.model.dtype) for name, config in configs]
        calls.append((dtypes, batch_size, mode, kernels, gelu))
        return f"table {len(calls)}"

    monkeypatch.setattr(compile_only, "report", report)
    words = [*TINY, "--kernels", "--batch_size=8,256", "--mode=inference,train"]
    words.append("--gelu=tanh")
    ended = call(compile_only.main, *words)
    assert (ended.status, ended.out.split("\n")[0]) == (0, "table 1")
    assert calls == [
        ([("quickstart", "bfloat16")], size, mode, True, "tanh")
        for size, mode in itertools.product((256, 8), ("inference", "train"))
    ]
