"""Settings and fixtures of all tests; assets lie outside the repository."""

import functools
import gc
import os
import pathlib
import signal
import sys

import chex
import jax
import pytest
from flax import linen as nn

from tests.helpers import checked_shapes, compiling

checked_shapes.install()  # before the package is imported

from imagepiece_jax.common import parallel, progress  # noqa: E402
from tests.helpers import run_command  # noqa: E402

# Tracing makes many objects, few of them in cycles: at Python's own thresholds the
# searches for garbage are a twelfth of the suite's time.
gc.set_threshold(200_000, 20, 100)
# Tests compile hundreds of tiny programs and run each once: compile them fast.
os.environ.setdefault("XLA_FLAGS", compiling.QUICK)
# A shell's `&` starts processes that ignore Ctrl-C, and nohup's ignore SIGHUP. Tests
# send both.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
os.environ["JAX_COMPILATION_CACHE_DIR"] = ""  # tests' commands keep no programs
# With this package OpenVINO would report its use.
sys.modules["openvino_telemetry"] = None
jax.config.update("jax_numpy_rank_promotion", "raise")
# Some tests take a second device; the package takes the first.
jax.config.update("jax_num_cpu_devices", 2)
parallel.local_devices = lambda process=None: jax.local_devices(process)[:1]
parallel.device_count = lambda: 1
compiling.speed_up()
jax.config.update("jax_compilation_cache_dir", str(compiling.PROGRAMS))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def pytest_collection_modifyitems(items):
    """Run files with slow tests first, so that no worker ends with one of them.

    `--no-loadscope-reorder` of `make test` keeps this order.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def assets():
    """Folder with weights, data and reference outputs; skips where it is absent."""
    beside = pathlib.Path(__file__).resolve().parents[2] / "shared"
    folder = pathlib.Path(os.environ.get("IMAGEPIECE_ASSETS", beside))
    if not (folder / "weights").is_dir():
        pytest.skip(f"no weights in {folder}, the folder IMAGEPIECE_ASSETS")
    return folder


@pytest.fixture(scope="module")
def file_patch():
    """A MonkeyPatch for all tests of a file."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def quickly_begun(file_patch):
    """Runs begin with NumPy's weights; JAX compiles for 1-2 s before it draws."""
    from imagepiece_jax.training.initial_weights import model_variables
    from tests.helpers import small_runs

    file_patch.setattr(model_variables, "draw_variables", small_runs.draw_untrained)


@pytest.fixture(scope="module")
def recoveries_compiled_once(file_patch):
    """Recoveries of one model compile once, whatever their lengths."""
    from tests.helpers import small_runs

    small_runs.compile_recoveries_once(file_patch)


@pytest.fixture(scope="module")
def evaluations_compiled_once(file_patch):
    from imagepiece_jax.evaluation import accuracy

    remembered = functools.cache(accuracy.make_eval_step)
    file_patch.setattr(accuracy, "make_eval_step", remembered)


@pytest.fixture
def traced_once(monkeypatch):
    """A second trace of a model fails, unless `chex.clear_trace_counter` is called."""
    from imagepiece_jax.models.vit import ViT

    chex.clear_trace_counter()
    apply = chex.assert_max_traces(lambda *a, **k: nn.Module.apply(*a, **k), n=1)
    monkeypatch.setattr(ViT, "apply", apply)


@pytest.fixture(autouse=True)
def _hide_long_work(monkeypatch):
    """Any compilation may be long on a busy machine."""
    monkeypatch.setattr(progress, "PATIENCE_SECONDS", 1e6)


@pytest.fixture(scope="module", autouse=True)
def _free_programs():
    """Free the compiled programs of several files at once.

    JAX also forgets its traces then, and the next file's first models take more than
    twice as long. So this happens about four times in the suite.
    """
    yield
    if len(jax.devices()[0].client.live_executables()) > 1000:
        compiling.make_context.cache_clear()
        jax.clear_caches()


@pytest.fixture
def shown():
    """Print what the package logs, as commands do."""
    with run_command.show_log():
        yield


@pytest.fixture
def capsys(shown, capsys):
    """pytest's capsys, with a command's output."""
    return capsys
