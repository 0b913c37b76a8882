import signal
from multiprocessing.pool import ThreadPool

import pytest

from imagepiece_jax.common import signals
from tests.helpers.run_command import start


@pytest.mark.parametrize("signum", signals.STOP_SIGNALS)
def test_signals_are_noted_and_handlers_are_restored(signum):
    before = signal.getsignal(signum)
    with signals.noted_signals() as noted:
        assert not noted
        signal.raise_signal(signum)
        signal.raise_signal(signal.SIGTERM)
        assert noted == [signum, signal.SIGTERM]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signum) is before


def test_other_threads_are_left_alone():
    def find_handler():
        with signals.noted_signals():
            return signal.getsignal(signal.SIGTERM)

    with ThreadPool(1) as pool:
        assert pool.apply(find_handler) is signal.getsignal(signal.SIGTERM)


ENDED = """
import os, pathlib, signal, sys
from imagepiece_jax import cli
from imagepiece_jax.common import files

def main(signum: int, folder: str):
    with files.replacement_file(pathlib.Path(folder, "file")) as new:
        new.write_text("half")
        os.kill(os.getpid(), signum)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` ignores it
cli.run_command(main)
"""


@pytest.mark.parametrize("signum, err", [(2, "interrupted\n"), (15, "")])
def test_a_signal_ends_a_command_with_nothing_half_written(signum, err, tmp_path):
    ended = start("-c", ENDED, f"--signum={signum}", f"--folder={tmp_path}")
    assert (ended.status, ended.err) == (128 + signum, err)
    assert not [*tmp_path.iterdir()]
