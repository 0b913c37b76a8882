"""Does the report compile what a config describes, and add up what comes out?"""

import types

import jax
import pytest

from configs import quickstart
from imagepiece_jax.errors import InputError
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
    made = quickstart.get_config().unlock()
    made.model.update(dtype="bfloat16", embed_dim=32, num_heads=2, depth=4, **model)
    made.reduction.merge_blocks, made.reduction.prune_blocks = (0,), (2,)
    return made


@pytest.fixture
def compiled(monkeypatch):
    """Traces in place of compiling; the list of (results, arguments) of each call."""
    calls, texts = [], [ADD, "\n".join([ADD, COPY, COPY])]
    monkeypatch.setattr(h200, "devices", lambda count=1: jax.devices("cpu")[:count])

    def trace(fn, *args, options=None, donate=(), places=None):
        assert options == compile_only.OPTIONS
        calls.append((jax.eval_shape(fn, *args), args))
        return TEXT.replace("LINES", texts[len(calls) - 1])

    monkeypatch.setattr(h200, "compile_for", trace)
    return calls


def test_one_row_a_config_compared_with_the_first(compiled):
    plain = config(stem="patch")
    text = compile_only.report([("one", config()), ("two", plain)], 6)
    note, title, table = text.split("\n\n")
    assert "not run" in note and "guesses" in note
    assert title.startswith("mode inference, batch size 6")
    heading, one, two = table.splitlines()
    assert heading.split("  ")[-1] == "config"
    assert one.split()[:4] == ["1", "0.004", "0.004", "(1)"]
    assert (one.split()[-1], one.split()[-2]) == ("one", "1.000")
    assert two.split()[:2] == ["3", "0.012"] and two.split()[-2:] == ["0.333", "two"]
    for results, (variables, images) in compiled:
        assert (images.shape, images.dtype) == ((6, 16, 16, 3), "bfloat16")
        assert (results.shape, results.dtype) == ((6, 10), "float32")
        assert (
            variables["params"]["blocks_0"]["attn"]["q"]["kernel"].dtype == "bfloat16"
        )


def test_kernels_are_listed_where_they_are_asked_for(compiled):
    text = compile_only.report([("one", config())], 6, kernels=True)
    assert text.split("\n\n")[-1].splitlines()[0] == "one"
    assert "s, " in text.splitlines()[-1]


def test_a_training_step_is_compiled_whole(compiled):
    compile_only.report([("one", config(attention="xla"))], 6, mode="train")
    ((state, metrics), (given, batch, teacher)) = compiled[0]
    assert batch["image"].shape == (1, 1, 6, 16, 16, 3) and teacher is None
    assert metrics["loss"].shape == ()
    same = jax.tree.map(lambda a, b: a.shape == b.shape, state, given)
    assert all(jax.tree.leaves(same))


def test_attention_is_that_of_the_described_gpu(monkeypatch):
    gpu = types.SimpleNamespace(platform="gpu", compute_capability="9.0")
    monkeypatch.setattr(h200, "devices", lambda: [gpu])

    def backend(**model):
        made = config(**model)
        plain = compile_only.from_config.model(compile_only._unplaced(made))
        return compile_only._placed(plain, made).backend

    assert backend() == backend(attention="cudnn") == "cudnn"
    assert backend(attention="xla") == "xla"
    wide = config()
    wide.model.dtype = "float32"
    plain = compile_only.from_config.model(compile_only._unplaced(wide))
    assert compile_only._placed(plain, wide).backend == "xla"


def test_other_modes_are_refused():
    with pytest.raises(InputError, match="--mode is 'copy'.*inference, train"):
        compile_only.report([("one", config())], 6, mode="copy")
