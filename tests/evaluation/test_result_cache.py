"""Results are measured once, and written at once and whole."""

import contextlib
import json

import pytest

from imagepiece_jax.evaluation.result_cache import POINTS_FILE_NAME, ResultCache
from tests.helpers.refused_calls import refused

SETTING = {"kind": "accuracy", "reduction": "evit:keep_rate=0.7"}


def measure_settings(folder, *settings):
    """(results, number of measurements) of one process."""
    calls = []
    with contextlib.closing(ResultCache(folder, versions={"jax": "0.0"})) as cache:

        def measure():
            calls.append("")
            return {"acc1": 80.0 + len(calls)}

        results = [cache.measure_once(setting, measure) for setting in settings]
    return results, len(calls)


def test_a_result_is_measured_once_and_then_read(tmp_path, capsys):
    first, calls = measure_settings(tmp_path, SETTING, SETTING)
    assert calls == 1
    assert first == [{"acc1": 81.0}] * 2
    reordered = {name: SETTING[name] for name in reversed(SETTING)}
    assert capsys.readouterr().err == "measuring a point ..\ntook 0 s\n"
    second, calls = measure_settings(tmp_path, reordered)
    assert calls == 0
    assert second == first[:1]
    assert not capsys.readouterr().err
    other = SETTING | {"reduction": "evit:keep_rate=0.6"}
    assert measure_settings(tmp_path, SETTING, other)[1] == 1


def test_a_line_has_setting_versions_and_time(tmp_path):
    measure_settings(tmp_path, SETTING)
    line = json.loads((tmp_path / POINTS_FILE_NAME).read_text())
    facts = {"setting": SETTING, "result": {"acc1": 81.0}, "versions": {"jax": "0.0"}}
    assert facts.items() < line.items()
    assert {"git", "time"} < set(line)


@pytest.mark.parametrize("num_bytes", [1, 20, -1])  # -1: only the line's end is missing
def test_a_torn_line_is_measured_again(tmp_path, num_bytes):
    measure_settings(tmp_path, SETTING, SETTING | {"x": 1})
    file = tmp_path / POINTS_FILE_NAME
    first, second = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(first + second[:num_bytes])
    assert measure_settings(tmp_path, SETTING, SETTING | {"x": 1})[1] == 1
    assert file.read_bytes().startswith(first + second[:12])
    assert len(file.read_bytes().splitlines()) == 2


def test_damaged_or_used_folders_are_refused(tmp_path):
    damaged = tmp_path / "damaged" / POINTS_FILE_NAME
    damaged.parent.mkdir()
    used = ResultCache(tmp_path / "used")
    with refused("in use"):
        ResultCache(tmp_path / "used")
    for line in ("nonsense", "3", '"ab"'):
        damaged.write_text(f'{{"setting": {{}}, "result": {{}}}}\n{line}\n')
        with refused("points.jsonl", " line 2"):
            ResultCache(damaged.parent)
    damaged.write_text('{"name": "of another file"}\n')
    ResultCache(damaged.parent).close()
    used.close()
    ResultCache(tmp_path / "used").close()
