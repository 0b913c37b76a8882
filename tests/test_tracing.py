"""Programs that the tests lower fast are those that JAX lowers."""

import jax
import pytest
from jax._src.interpreters import mlir

from tests import tracing
from tests.models import tiny


@pytest.mark.skipif(tracing._lower_equation is None, reason="no function to replace")
def test_programs_are_those_of_jax(monkeypatch):
    """The second one takes over what the first has lowered."""
    model = tiny.model("tome:r=2", depth=2)
    variables = tiny.shapes(model)
    images = jax.ShapeDtypeStruct((2, tiny.SIDE, tiny.SIDE, 3), "float32")

    def text():
        run = jax.jit(lambda variables, images: model.apply(variables, images).logits)
        return run.lower(variables, images).as_text()

    fast = [text(), text()]
    assert tracing._lowered
    assert mlir._cached_lowering_miss is tracing._lower_once
    monkeypatch.setattr(mlir, "make_ir_context", tracing._make_context.__wrapped__)
    monkeypatch.setattr(mlir, "_cached_lowering_miss", tracing._lower_equation)
    assert fast == [text()] * 2
