import io
import time

import pytest

from imagepiece_jax.common import progress


@pytest.mark.parametrize(
    "seconds, enabled, is_printed", [(0, True, False), (0.3, True, True)]
)
def test_long_work_is_named(monkeypatch, capsys, seconds, enabled, is_printed):
    monkeypatch.setattr(progress, "PATIENCE_SECONDS", 0.1)
    with progress.announced_work("compiling the step", enabled):
        time.sleep(seconds)
    assert capsys.readouterr().err == "compiling the step ..\n" * is_printed


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_items_are_counted(shown, monkeypatch, stream):
    """A log gets lines; a terminal gets a bar that disappears."""
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(progress, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(progress, "LINE_INTERVAL_SECONDS", 0.0)
    assert [*progress.with_progress_bar("abc", "letters")] == ["a", "b", "c"]
    text = stream.getvalue()
    if stream.isatty():
        assert "letters" in text and "0/3" in text
        assert text.split("\r")[-2].strip() == ""
    else:
        assert [line[:8] for line in text.splitlines()] == ["letters:"] * 2


def test_times_in_words():
    texts = [progress.duration_text(seconds) for seconds in (40, 540, 9000)]
    assert texts == ["40 s", "9 min", "2.5 h"]
