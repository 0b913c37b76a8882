"""The benchmark command: what it measures, writes and refuses."""

import itertools
import json
import re

import numpy as np
import pytest

import imagepiece_jax
from imagepiece_jax.benchmark import workloads
from imagepiece_jax.commands import benchmark
from imagepiece_jax.common import timer
from imagepiece_jax.inference import optimize
from tests import programs
from tests.benchmark.small import SMALL, TINY, simplify
from tests.command import call, sentence
from tests.models import tiny
from tests.pictures import write_csv
from tests.runs import ROOT

KEYS = {
    *("config", "mode", "batch_size", "dtype", "weights", "device", "versions", "git"),
    *("throughput", "throughput_min", "throughput_max", "ms", "seconds_a_call"),
    *("ratio", "ratio_min", "ratio_max", "mac_ratio", "gmacs", "macs_per_s"),
    *("ceiling_share", "matmul_ceiling", "copy_ceiling", "compile_s", "peak_memory"),
    *("attention", "gelu", "sizes", "stem", "warmup", "repeats", "seconds"),
}
AGAIN = "quickstart_again"  # the same config under another name


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Two configs at two batch sizes in two modes: (output, folder)."""
    folder = tmp_path_factory.mktemp("out")
    again = folder / "configs" / f"{AGAIN}.py"
    again.parent.mkdir()
    again.write_text((ROOT / "configs" / "quickstart.py").read_text())
    words = ["--config", again, "--mode=inference,copy", "--batch_size=2"]
    words += ["--json", folder / "a.json", "--markdown", folder / "a.md"]
    words += ["--plot", folder / "a.png", "--gelu=tanh"]
    # A program that is read has no compile_s.
    with pytest.MonkeyPatch.context() as patch, programs.compiled_anew():
        simplify(patch)
        ended = call(benchmark.main, *TINY, *SMALL, *words).quiet()
    return ended.out, folder


def rows(folder):
    return [json.loads(line) for line in (folder / "a.json").read_text().splitlines()]


def test_every_figure_is_a_json_line(measured):
    found = rows(measured[1])
    cases = itertools.product((4, 2), ("inference", "copy"), ("quickstart", AGAIN))
    measured_cases = [(r["batch_size"], r["mode"], r["config"]) for r in found]
    assert measured_cases == list(cases)
    for row in found:
        assert set(row) == KEYS
        assert 0 < row["throughput_min"] <= row["throughput"] <= row["throughput_max"]
        assert len(row["seconds_a_call"]) == row["repeats"] == 2
        assert row["dtype"] == "float32"
        assert row["attention"] == "xla"
        assert row["gelu"] == "tanh"
        assert row["peak_memory"] > 0
        assert row["compile_s"] > 0
        # The same model twice: overrides reach both.
        assert row["mac_ratio"] == 1
        assert row["throughput"] == pytest.approx(row["batch_size"] / row["ms"] * 1e3)


def test_tables_plot_and_sentences(measured):
    out, folder = measured
    assert (folder / "a.png").read_bytes().startswith(b"\x89PNG")
    text = (folder / "a.md").read_text()
    assert re.findall("### (.*)", text) == ["inference", "copy"]
    assert f"inference: {AGAIN} is " in text
    assert f"inference: {AGAIN} is " in out
    assert "largest matmul rate" in out.splitlines()[4]
    assert "note: --warmup 2 is below 20: not for publication" in out


@pytest.mark.parametrize(
    "words, message",
    [
        (["--device=gpu"], "--device is gpu, which JAX does not find here"),
        (["--batch_size=1000000000"], "1000000000, for which quickstart needs"),
    ],
)
def test_mistakes_end_it_before_anything_is_measured(words, message, monkeypatch):
    """Those that depend on the machine; tests/errors.txt has the others."""
    monkeypatch.setattr(timer, "measure", lambda *_: pytest.fail("measured"))
    assert message in sentence(call(benchmark.main, *TINY, *words))


@pytest.mark.parametrize("trained", [False, True])
def test_a_sweep_measures_one_model_dense_and_with_each_reduction(
    tmp_path, monkeypatch, trained
):
    """Their costs are those of the methods; a learned one needs no training."""
    simplify(monkeypatch)
    words = ["--config=configs/quickstart.py", "--config.model.stem=patch", *TINY[2:]]
    words = [word for word in words if "reduction" not in word]
    patches = 64
    width = 8
    if trained:
        folder = imagepiece_jax.save(tmp_path / "trained", tiny.pretrained(depth=2))
        words = ["--weights", folder]
        patches = tiny.TOKENS
        width = tiny.WIDTH
    words += ["--sweep=tome:r=2,4", "--sweep=dynamicvit:blocks=(1,)", "--sweep=none"]
    words += ["--json", tmp_path / "a.json", "--dtype=float32", *SMALL]
    call(benchmark.main, *words).quiet()
    found = {row["config"]: row for row in rows(tmp_path)}
    assert [*found] == ["dense", "tome r=2", "tome r=4", "dynamicvit blocks=(1,)"]
    assert found["dense"]["ratio"] == found["dense"]["mac_ratio"] == 1
    gmacs = [row["gmacs"] for row in found.values()]
    assert gmacs[0] > gmacs[1] > gmacs[2]
    assert gmacs[3] < gmacs[0]
    # The MLP of the first block has two tokens fewer, that of the second four; so has
    # its attention two.
    mlp = 8 * width**2
    attention = 4 * width**2
    scores = 2 * width * ((patches + 1) ** 2 - (patches - 1) ** 2)
    saved = (2 + 4) * mlp + 2 * attention + scores
    assert gmacs[0] - gmacs[1] == pytest.approx(saved / 1e9, rel=1e-3)


def test_trained_weights_beside_their_dense_model(tmp_path, monkeypatch):
    """Their variables are compiled, and the dense model is measured first."""
    simplify(monkeypatch)
    trained = tiny.pretrained(depth=2)
    compiled = []
    folder = tmp_path / "trained"
    imagepiece_jax.save(folder, trained)
    stand_in = optimize.optimize

    def seen(vit, **options):
        compiled.append((vit.reduction.name, vit.variables))
        return stand_in(vit, **options)

    monkeypatch.setattr(optimize, "optimize", seen)
    words = ["--weights", folder, "--json", tmp_path / "a.json", "--dtype=float32"]
    ended = call(benchmark.main, *words, "--reduction=tome:r=2", *SMALL).ok()
    assert f"weights of {folder}, random images" in ended.out
    found = [(row["config"], row["weights"]) for row in rows(tmp_path)]
    assert found == [("dense", str(folder)), ("tome r=2", str(folder))]
    assert [name for name, _ in compiled] == ["none", "tome"]
    kernel = trained.variables["params"]["head"]["kernel"]
    for _, each in compiled:
        np.testing.assert_array_equal(each["params"]["head"]["kernel"], kernel)
    ended = call(benchmark.main, *words, *SMALL, "--mode=train")
    assert sentence(ended).startswith("--mode is 'train'; allowed: inference, copy")


def test_weights_are_timed_from_image_files(tmp_path, monkeypatch):
    """Resized as the weights want; the data are named beside them."""
    simplify(monkeypatch)
    imagepiece_jax.save(tmp_path / "trained", tiny.pretrained(image_size=40))
    pixels = np.random.default_rng(0).integers(0, 256, (6, 50, 60, 3), np.uint8)
    data = write_csv(tmp_path, pixels, np.arange(6) % tiny.CLASSES)
    words = ["--weights", tmp_path / "trained", "--mode=end_to_end", *SMALL]
    said = sentence(call(benchmark.main, *words))
    assert said == "--data is missing; name test images"
    words += [f"--data={data}", f"--json={tmp_path}/a.json", "--dtype=float32"]
    seen = []
    batches = workloads.Reading.batches

    def noted(reading):
        for batch in batches(reading):
            seen.append(batch.shape)
            yield batch

    monkeypatch.setattr(workloads.Reading, "batches", noted)
    call(benchmark.main, *words).ok()
    assert {row["mode"] for row in rows(tmp_path)} == {"end_to_end"}
    assert {*seen} == {(4, 40, 40, 3)}


def test_forms_of_the_program_are_those_of_optimize(tmp_path, monkeypatch):
    simplify(monkeypatch)
    imagepiece_jax.save(tmp_path / "trained", tiny.pretrained(depth=1))
    asked = []
    stand_in = optimize.optimize

    def noted(vit, **options):
        forms = {k: options.pop(k, None) for k in ("sizes", "reductions")}
        asked.append({**forms, "gelu": options.get("gelu")})
        return stand_in(vit, **options)

    monkeypatch.setattr(optimize, "optimize", noted)
    words = ["--weights", tmp_path / "trained", *SMALL]
    for more in ([], ["--sizes=direction", "--reductions=fast", "--gelu=tanh"]):
        call(benchmark.main, *words, *more).ok()
    none = dict.fromkeys(("sizes", "reductions", "gelu"))
    assert asked == [none, {"sizes": "direction", "reductions": "fast", "gelu": "tanh"}]
