import jax
import pytest
from jax._src.interpreters import mlir

from tests.helpers import fast_tracing, tiny_vit


@pytest.mark.skipif(
    fast_tracing._lower_equation is None, reason="no function to replace"
)
def test_fast_lowering_equals_jax(monkeypatch):
    """The second program reuses the first program's lowered equations."""
    model = tiny_vit.model("tome:r=2", depth=2)
    variables = tiny_vit.shapes(model)
    images = jax.ShapeDtypeStruct((2, tiny_vit.SIDE, tiny_vit.SIDE, 3), "float32")

    def lower_to_text():
        run = jax.jit(lambda variables, images: model.apply(variables, images).logits)
        return run.lower(variables, images).as_text()

    fast = [lower_to_text(), lower_to_text()]
    assert fast_tracing._lowered
    assert mlir._cached_lowering_miss is fast_tracing._lower_once
    monkeypatch.setattr(mlir, "make_ir_context", fast_tracing._make_context.__wrapped__)
    monkeypatch.setattr(mlir, "_cached_lowering_miss", fast_tracing._lower_equation)
    assert fast == [lower_to_text()] * 2
