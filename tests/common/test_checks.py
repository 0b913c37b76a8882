import pytest

from imagepiece_jax.common import checks, extras, xla_options
from tests.helpers.refused_calls import refused


def test_a_value_of_another_type_is_named_without_bounds():
    with refused("seed is 'a'; it must be a number"):
        checks.check_range("seed", "a")


def test_float16_layers_need_a_gpu():
    xla_options.check_dtype("float16", "gpu")
    with refused("float16"):
        xla_options.check_dtype("float16", "cpu")


def test_an_installed_package_without_a_module_keeps_its_error():
    with pytest.raises(ModuleNotFoundError, match="jax.nosuch"):
        with extras.explained_imports("a test"):
            import jax.nosuch  # noqa: F401
