import json

from imagepiece_jax.evaluation.result_cache import POINTS_FILE_NAME, ResultCache

SETTING = {"kind": "accuracy", "reduction": "evit:keep_rate=0.7"}


def measure_settings(folder, *settings):
    """(results, number of measurements) of one process."""
    calls = []
    cache = ResultCache(folder, versions={"jax": "0.0"})

    def measure():
        calls.append("")
        return {"acc1": 80.0 + len(calls)}

    results = [cache.measure_once(setting, measure) for setting in settings]
    return results, len(calls)


def test_a_result_is_measured_once_and_then_read(tmp_path):
    assert measure_settings(tmp_path, SETTING, SETTING) == ([{"acc1": 81.0}] * 2, 1)
    line = json.loads((tmp_path / POINTS_FILE_NAME).read_text())
    facts = {"setting": SETTING, "result": {"acc1": 81.0}, "versions": {"jax": "0.0"}}
    assert facts.items() < line.items()
    assert {"git", "time"} < set(line)
    reordered = dict(reversed(SETTING.items()))
    assert measure_settings(tmp_path, reordered) == ([{"acc1": 81.0}], 0)
    other = SETTING | {"reduction": "evit:keep_rate=0.6"}
    assert measure_settings(tmp_path, SETTING, other)[1] == 1


def test_a_torn_line_is_measured_again_and_others_are_passed_over(tmp_path):
    other = SETTING | {"x": 1}
    measure_settings(tmp_path, SETTING, other)
    file = tmp_path / POINTS_FILE_NAME
    file.write_bytes(b'5\n{"step": 1}\n' + file.read_bytes()[:-20])
    assert measure_settings(tmp_path, SETTING, other)[1] == 1
