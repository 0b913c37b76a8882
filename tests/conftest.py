"""Settings and fixtures of all tests; assets lie outside the repository."""

import gc
import os
import pathlib
import signal
import sys

from tests.helpers import compiling, forked_processes

# Imported objects stay; searching them for garbage takes a fifth of the time.
gc.disable()
# Tests compile hundreds of tiny programs and run each once: compile them fast. Some
# runs in separate processes (tests/helpers/small_runs.py) compile as users do.
os.environ.setdefault("XLA_FLAGS", compiling.QUICK)
# A shell's `&` starts processes that ignore Ctrl-C, and nohup's ignore SIGHUP. Tests
# send both.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
# Programs are kept for the next run of the tests unless the variable is empty. Commands
# of tests keep and read none.
ROOT = pathlib.Path(__file__).resolve().parent.parent
named = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(ROOT / "build" / "programs"))
KEPT = os.environ.setdefault("TESTS_PROGRAMS", named)  # workers inherit it
os.environ["JAX_COMPILATION_CACHE_DIR"] = ""
# With this package OpenVINO would report its use.
sys.modules["openvino_telemetry"] = None

import chex  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402
from flax import linen as nn  # noqa: E402

from tests.helpers import checked_shapes  # noqa: E402

checked_shapes.install()  # before the package is imported

from imagepiece_jax.common import parallel, progress  # noqa: E402
from tests.helpers import fast_tracing, run_command, stored_programs  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
# chex skips its variant with_pmap without a second device; the package takes the first.
jax.config.update("jax_num_cpu_devices", 2)
parallel.local_devices = lambda process=None: jax.local_devices(process)[:1]
parallel.device_count = lambda: 1
fast_tracing.remember_initializers()
fast_tracing.name_no_arguments()
fast_tracing.remember_exports()
fast_tracing.lower_fast()
if KEPT:
    stored_programs.keep(KEPT)


def pytest_configure(config):
    if KEPT and not hasattr(config, "workerinput"):
        stored_programs.remove_large_folder(KEPT)


def pytest_collection_finish():
    """Look for garbage less often: tracing makes many objects, few of them in cycles.

    The searches are a twelfth of the suite's time at Python's own thresholds.
    """
    gc.freeze()
    gc.set_threshold(*forked_processes.GARBAGE_THRESHOLDS)
    gc.enable()


def pytest_collection_modifyitems(items):
    """Run files with slow tests first, so that no worker ends with one of them.

    `--no-loadscope-reorder` of `make test` keeps this order.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def assets():
    """Folder with weights, data and reference outputs; skips where it is absent."""
    folder = pathlib.Path(os.environ.get("IMAGEPIECE_ASSETS", ROOT.parent / "shared"))
    if not (folder / "weights").is_dir():
        pytest.skip(
            f"no weights in {folder}: point IMAGEPIECE_ASSETS at a folder with "
            "weights/, data/ and fixtures/"
        )
    return folder


@pytest.fixture(scope="module")
def quickly_begun():
    """Runs of this and forked processes begin with NumPy's weights.

    JAX compiles for 1-2 s before it draws weights.
    """
    with pytest.MonkeyPatch.context() as patch:
        forked_processes.begin_quickly(patch.setattr)
        patch.setenv(forked_processes.QUICKLY, "1")
        yield


@pytest.fixture(scope="module")
def recoveries_compiled_once():
    """Recoveries of one model compile once, whatever their lengths."""
    from tests.helpers import small_runs

    with pytest.MonkeyPatch.context() as patch:
        small_runs.compile_recoveries_once(patch)
        yield


@pytest.fixture(scope="module")
def evaluations_compiled_once():
    """Evaluations of equal models compile once."""
    from tests.helpers import small_runs

    with pytest.MonkeyPatch.context() as patch:
        small_runs.compile_evaluations_once(patch)
        yield


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
        fast_tracing.renew_mlir_context()
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
