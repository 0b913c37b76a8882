"""What is said of long work, on a terminal and in a log."""

import io
import time

import pytest

from imagepiece_jax.common import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def said(monkeypatch):
    """A function that works for some seconds, and returns what was said on stderr."""
    monkeypatch.setattr(progress, "PATIENCE", 0.2)

    def work(seconds, stream, **options):
        monkeypatch.setattr("sys.stderr", stream)
        with progress.working("compiling the step", **options):
            time.sleep(seconds)
        return stream.getvalue()

    return work


def test_a_line_in_a_log_and_the_time_on_a_terminal_unless_the_work_is_short(said):
    assert said(0, io.StringIO()) == said(0, Terminal()) == ""
    assert said(0.5, io.StringIO()) == "compiling the step ..\n"
    assert said(0.5, io.StringIO(), enabled=False) == ""
    text = said(2.5, Terminal())
    assert "\rcompiling the step .. 00:00" in text
    assert "\rcompiling the step .. 00:01" in text
    assert text.split("\r")[-2].strip() == ""
    assert "\n" not in text.strip()


@pytest.fixture
def counting(monkeypatch):
    """What is said on a stream while three items take a second each."""
    clock = iter(range(100))
    monkeypatch.setattr(progress, "INTERVAL", 1.5)
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))

    def count(stream):
        monkeypatch.setattr("sys.stderr", stream)
        assert [*progress.counted("abc", "letters")] == ["a", "b", "c"]
        return stream.getvalue()

    return count


def test_items_are_counted_by_lines_in_a_log_and_a_bar_on_a_terminal(counting):
    assert counting(io.StringIO()) == "letters: 2 of 3, about 1 s left\n"
    shown = counting(Terminal())
    assert "letters" in shown and "0/3" in shown
    assert shown.split("\r")[-2].strip() == ""
    assert "\n" not in shown.strip()


def test_the_time_left_is_that_of_this_process(monkeypatch):
    """An earlier one did half of the work, and the first items wait for a compiler."""
    clock = iter([0, 400, 440])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    with progress.Progress("letters", 100, done=50) as letters:
        letters.add(10)
        letters.add(10)
    assert stream.getvalue() == "letters: 70 of 100, about 2 min left\n"
