"""The benchmark command: what it measures, writes and refuses; not how fast it is."""

import contextlib
import json
import re
import sys

import jax
import numpy as np
import pytest

from imagepiece_jax.benchmark import __main__ as benchmark
from imagepiece_jax.benchmark import input_stream, peak_rates, timer, workloads
from imagepiece_jax.models import registry
from imagepiece_jax.training import from_config
from tests.benchmark.small import SMALL, TINY
from tests.command import call, sentence
from tests.runs import ROOT
from tools import compile_only

KEYS = {
    *("config", "mode", "batch_size", "dtype", "device", "versions", "git"),
    *("throughput", "throughput_min", "throughput_max", "ms", "seconds_a_call"),
    *("ratio", "ratio_min", "ratio_max", "mac_ratio", "gmacs", "macs_per_s"),
    *("ceiling_share", "matmul_ceiling", "copy_ceiling", "compile_s", "peak_memory"),
    *("attention", "kernels", "gelu", "stem", "warmup", "repeats", "seconds"),
}
AGAIN = "quickstart_again"  # the same config under another name


class Mean:
    """In place of the compiled model: mean colours of images, and what it saw."""

    compile_seconds = 1.0

    def __init__(
        self, model, variables, *, batch_size, pixels, dtype, attention, kernels
    ):
        self.model, self.seen = model, []
        shape = (batch_size, 16, 16, 3)
        images = jax.ShapeDtypeStruct(shape, "uint8" if pixels else dtype)
        mean = jax.jit(lambda images: images.astype("float32").mean(axis=(1, 2)))
        self.compiled = mean.lower(images).compile()

    def __call__(self, images):
        self.seen.append(images)
        return self.compiled(images)


@pytest.fixture
def simple(monkeypatch):
    """Nothing that takes long: no model to compile, small products as ceilings."""
    simplify(monkeypatch)


def simplify(patch):
    patch.setattr(workloads.optimize, "optimize", Mean)
    patch.setattr(peak_rates, "SIDES", {"cpu": (8, 16)})
    patch.setattr(peak_rates, "COPIED", {"cpu": 4096})


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Two configs at two batch sizes from two starting points: (output, folder)."""
    folder = tmp_path_factory.mktemp("out")
    again = folder / "configs" / f"{AGAIN}.py"
    again.parent.mkdir()
    again.write_text((ROOT / "configs" / "quickstart.py").read_text())
    words = ["--config", again, "--mode=inference,copy", "--batch_size=2"]
    words += ["--json", folder / "a.json", "--markdown", folder / "a.md"]
    words += ["--plot", folder / "a.png"]
    with pytest.MonkeyPatch.context() as patch:
        simplify(patch)
        ended = call(benchmark.main, *TINY, *SMALL, *words)
    assert (ended.status, ended.err) == (0, "")
    return ended.out, folder


def rows(folder):
    return [json.loads(line) for line in (folder / "a.json").read_text().splitlines()]


def test_a_line_for_every_figure(measured):
    found = rows(measured[1])
    assert [(r["batch_size"], r["mode"], r["config"]) for r in found] == [
        (batch, mode, config)
        for batch in (4, 2)
        for mode in ("inference", "copy")
        for config in ("quickstart", AGAIN)
    ]
    for row in found:
        assert set(row) == KEYS
        assert 0 < row["throughput_min"] <= row["throughput"] <= row["throughput_max"]
        assert len(row["seconds_a_call"]) == row["repeats"] == 2
        assert row["dtype"] == "float32" and row["attention"] == "xla"
        assert row["peak_memory"] > 0 and row["compile_s"] > 0
        # The same model twice: overrides reach both.
        assert row["mac_ratio"] == 1
        assert row["throughput"] == pytest.approx(row["batch_size"] / row["ms"] * 1e3)


def test_table_and_plot_and_sentences(measured):
    out, folder = measured
    assert (folder / "a.png").read_bytes().startswith(b"\x89PNG")
    text = (folder / "a.md").read_text()
    assert re.findall("### (.*)", text) == ["inference", "copy"]
    assert f"inference: {AGAIN} is " in text and f"inference: {AGAIN} is " in out
    assert "largest matmul rate" in out.splitlines()[4]
    assert "note: --warmup 2 is below 20: not for publication" in out


@pytest.mark.parametrize("mode", ["inference", "copy"])
def test_inputs_differ_and_take_turns(mode, simple, monkeypatch):
    made = []
    monkeypatch.setattr(
        workloads.optimize,
        "optimize",
        lambda *args, **options: made.append(Mean(*args, **options)) or made[0],
    )
    job = workloads.Subject(tiny_config(), 3, "float32").workload(mode).job
    for number in range(2 * workloads.INPUTS):
        job.call(number)
    first, again = made[0].seen[: workloads.INPUTS], made[0].seen[workloads.INPUTS :]
    assert all(a is b for a, b in zip(first, again, strict=True))
    assert len({float(images.std()) for images in first}) == workloads.INPUTS
    assert all(images.shape == (3, 16, 16, 3) for images in first)
    assert all(images.std() > 0.5 for images in first)  # no zeros
    assert all(isinstance(images, np.ndarray) == (mode == "copy") for images in first)


def test_images_of_files_come_through_the_loader(simple):
    with contextlib.closing(input_stream.Feeds()) as reader:
        subject = workloads.Subject(tiny_config(), 3, "float32", reader)
        subject.check("end_to_end")
        job = subject.workload("end_to_end").job
        colours = [np.asarray(job.call(number)) for number in range(2)]
    assert colours[0].shape == (3, 3) and (colours[0] != colours[1]).any()
    assert all((0 < c).all() and (c < 255).all() for c in colours)  # of pixels


def test_subjects_that_want_the_same_images_share_a_reader():
    config, other = tiny_config(), tiny_config()
    config.batch_size, other.batch_size = 5, 6
    with contextlib.closing(input_stream.Feeds()) as reader:
        first = reader.batches(config)
        assert reader.batches(config) is first is not reader.batches(other)
        batches = [next(first) for _ in range(2)]
        assert [(b.shape, b.dtype) for b in batches] == [((5, 16, 16, 3), "uint8")] * 2
        assert (batches[0] != batches[1]).any()


def test_what_is_timed_is_the_optimised_model():
    work = workloads.Subject(tiny_config(), 4, "float32").workload("copy")
    logits = work.job.call(0)
    work.job.wait(logits)
    assert logits.shape == (4, 10) and np.isfinite(logits).all()
    assert work.facts["compile_s"] > 0 and work.facts["peak_memory"] > 4 * 16 * 16 * 3
    expected = registry.model_macs(from_config.model(tiny_config()), 16)
    assert (work.images, work.macs) == (4, 4 * expected)


def tiny_config():
    from configs import quickstart

    config = quickstart.get_config()
    size = {"model.depth": 2, "model.embed_dim": 8, "model.num_heads": 2}
    blocks = {"reduction.merge_blocks": (0,), "reduction.prune_blocks": (1,)}
    config.update_from_flattened_dict(size | blocks)
    return config.lock()


@pytest.mark.slow  # compiles a step of training
def test_a_step_of_training_changes_the_state_and_counts_three_forwards():
    subject = workloads.Subject(tiny_config(), 4, "float32")
    work = subject.workload("train")
    first, second = (work.job.call(number) for number in range(2))
    work.job.wait(second)
    assert first["loss"] != second["loss"]
    forward = registry.model_macs(subject.model, subject.config.image_size)
    assert (work.images, work.macs) == (4, 3 * 4 * forward)
    assert work.facts["compile_s"] > 0


def test_ceilings_are_rates_of_the_fastest_product_and_of_the_copy(monkeypatch):
    seconds = iter([2.0, 4.0, 8.0])
    monkeypatch.setattr(timer, "measure", lambda jobs, rules: {"": [next(seconds)]})
    found = peak_rates.measure("float32", timer.Rules(), sides=(10, 20), copied=4000)
    assert found == (2 * 20**3 / 4.0, 2 * 4000 / 8.0)


@pytest.mark.parametrize(
    "texts, sizes",
    [(["256"], [256]), (["1,8", "32"], [32, 8, 1]), (["8,8"], [8])],
)
def test_batch_sizes_fall(texts, sizes):
    assert benchmark.suite.batch_sizes(texts) == sizes


def test_compile_only_reports_every_size_and_mode_and_measures_nothing(monkeypatch):
    asked = []

    def report(configs, batch_size, mode, kernels):
        dtypes = [(name, config.model.dtype) for name, config in configs]
        asked.append((dtypes, batch_size, mode, kernels))
        return f"table {len(asked)}"

    monkeypatch.setattr(compile_only, "report", report)
    monkeypatch.setattr(timer, "measure", lambda *_: pytest.fail("measured"))
    words = ["--compile-only", "h200", "--kernels", "--batch_size=8,256"]
    ended = call(benchmark.main, *TINY, *words, "--mode=inference,train")
    assert (ended.status, ended.out.split("\n")[0]) == (0, "table 1")
    assert asked == [
        ([("quickstart", "bfloat16")], size, mode, True)
        for size in (256, 8)
        for mode in ("inference", "train")
    ]


def refused(*words):
    return sentence(call(benchmark.main, *words))


@pytest.mark.parametrize(
    "words, told",
    [
        (["--batch_size=0"], "--batch_size is '0'; allowed are whole numbers from 1,"),
        (["--batch_size=8,x"], "--batch_size is 'x'; allowed are whole numbers from"),
        (["--batch_size=²"], "--batch_size is '²'; allowed are whole numbers from"),
        (["--mode="], "--mode is empty; allowed are inference, copy, end_to_end"),
        (["--mode=fast"], "--mode is 'fast'; allowed are inference, copy, end_to_end"),
        (["--against=jax"], "--against is 'jax'; allowed are timm, tome"),
        (["--device=gpu"], "--device is gpu, but JAX finds no such device"),
        (["--kernels"], "--kernels goes with --compile-only h200"),
        (["--json=/no/such/a.json"], "--json /no/such/a.json cannot be written (No"),
        (["--plot=/no/such/a.png"], "--plot /no/such/a.png cannot be written (No su"),
        (
            ["--batch_size=1000000000"],
            "--batch_size 1000000000 does not fit: quickstart needs",
        ),
        (
            ["--mode=end_to_end", "--config.data.name=folder:/no/such"],
            "quickstart: folder /no/such/val cannot be read (No such file",
        ),
        (
            ["--mode=end_to_end", "--batch_size=2048"],
            "quickstart: config.batch_size is 2048, but the training data has only",
        ),
        (
            ["--config", f"{ROOT}/configs/quickstart.py"],
            f"--config {ROOT}/configs/quickstart.py: a config of this name is there",
        ),
        (["--config.model.name=deit_xs"], "config.model.name is 'deit_xs'; the models"),
        (["--dtype=int8"], "flag --dtype=int8: value should be one of"),
        (["--repeats=0"], "flag --repeats=0: "),
        (["--seconds=nan"], "--seconds is nan; allowed are numbers"),
        (["--seconds=inf"], "--seconds is inf; allowed are numbers"),
        (
            ["--json=a.x", "--plot=./a.x"],
            "--plot ./a.x is the file of --json; allowed is another",
        ),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(words, told, monkeypatch):
    monkeypatch.setattr(timer, "measure", lambda *_: pytest.fail("measured"))
    assert refused(*TINY, *words).startswith(told)


def test_a_config_is_needed():
    assert refused().startswith("--config is missing: ")


def test_an_override_that_one_of_the_configs_lacks():
    dense, reduced = (f"{ROOT}/configs/{n}.py" for n in ("deit_s", "deit_s_tome"))
    told = refused("--config", dense, "--config", reduced, "--config.reduction.r=8")
    assert told.startswith(f"{dense}: config.reduction.r is not a field")


def test_torch_that_is_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    told = refused(*TINY, "--against=timm")
    assert told.startswith("--against needs torch, which cannot be imported")
    assert told.endswith("pip install '.[torch]'")


@pytest.mark.parametrize(
    "error",
    [RuntimeError("RESOURCE_EXHAUSTED: Out of memory, 9 bytes"), MemoryError()],
)
def test_a_full_memory_is_one_sentence(simple, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(workloads.Subject, "workload", fail)
    assert refused(*TINY, *SMALL).startswith("--batch_size 4 does not fit the memory")


def test_what_was_measured_is_kept_when_the_next_fails(simple, monkeypatch, tmp_path):
    out = tmp_path / "a.json"
    workload = workloads.Subject.workload

    def only_four(self, mode):
        if self.batch_size != 4:
            raise MemoryError
        return workload(self, mode)

    monkeypatch.setattr(workloads.Subject, "workload", only_four)
    told = refused(*TINY, *SMALL, "--batch_size=2", f"--json={out}")
    assert told.startswith("--batch_size 2 does not fit")
    assert [json.loads(t)["batch_size"] for t in out.read_text().splitlines()] == [4]
