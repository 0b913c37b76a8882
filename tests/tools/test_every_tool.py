"""How the commands among the tools start."""

import pytest

from tests.helpers.run_command import start


@pytest.mark.parametrize("name", ["compile_only", "gpu_speed", "onnx_speed"])
def test_a_command_starts(name):
    ended = start("-m", f"tools.{name}", "--help", imported=True)
    assert (ended.status, ended.err) == (0, "") and "usage:" in ended.out, ended
