import functools
import itertools
import json
import math
import re
import shutil

import numpy as np
import pytest

import imagepiece_jax
from imagepiece_jax.errors import RunError
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.training import trainer
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.weights.save import save
from tests import test_readme
from tests.helpers import forked_processes, small_runs
from tests.helpers.picture_files import write_plain
from tests.helpers.refused_calls import refused
from tests.helpers.small_states import assert_same, folders

pytestmark = pytest.mark.usefixtures("quickly_begun", "evaluations_compiled_once")

# 1,438 digits of 16 patches, 256 a step: 5 steps an epoch.
PLAIN = {"model.depth": 1, "reduction": "none"}
FIELDS = small_runs.SMALL | {"batch_size": 256, "eval_batch_size": 359}
FIELDS |= {"epochs": 2, "warmup_epochs": 0.0, "model.patch_size": 4}
FIELDS |= {"model.stem": "patch"}  # compiles fast
short_config = functools.partial(small_runs.quickstart_config, FIELDS)


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(file_patch):
    small_runs.compile_once(file_patch)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    last = small_runs.train(short_config(profile=True), workdir)
    return workdir, last


def test_a_run_leaves_metrics_config_versions_classes_and_checkpoints(finished):
    workdir, last = finished
    train = small_runs.lines(workdir, "train")
    assert [line["step"] for line in train] == list(range(1, 11))
    first, *rest = train
    assert first["throughput"] is None is first["input_wait"], "it compiles"
    assert all(line["throughput"] > 0 <= line["input_wait"] < 1 for line in rest)
    assert all(line["grad_norm"] > 0 == line["skipped"] for line in train)
    (evaluated,) = small_runs.lines(workdir, "eval")
    assert (evaluated["step"], evaluated["acc1"]) == (10, last["acc1"])
    assert evaluated["images"] == 359  # 359 = 36 * 10 - 1: every image of the fifth
    assert len(json.loads((workdir / "run.json").read_text())["starts"]) == 1
    assert list((workdir / "profile").rglob("*.trace.json.gz"))
    assert imagepiece_jax.load(workdir).class_names == tuple("0123456789")


def test_a_finished_run_stays_as_it_is(finished, capsys):
    workdir, last = finished
    before = (workdir / "metrics.jsonl").read_bytes()
    assert small_runs.train(short_config(profile=True), workdir) == last
    assert "this run is complete: 10 steps" in capsys.readouterr().out
    with refused("config.epochs is 99, but 2"):
        small_runs.train(short_config(epochs=99), workdir)
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_nonfinite_steps_stop_a_run_and_its_resumption(finished, tmp_path):
    """The first step throws the finished run's weights far off."""
    start = shutil.copytree(finished[0], tmp_path / "start")
    workdir = tmp_path / "run"
    fields = {"lr": 1e30, "checkpoint_every_steps": 1, "max_skipped_steps": 2}
    config = short_config(fields, **{"init.weights": str(start)})
    message = r"^(loss|grad_norm) is nan at step \d+, the last of 3 skipped"
    with pytest.raises(RunError, match=message) as error:
        small_runs.train(config, workdir)
    step = int(re.search(r"\d+", str(error.value))[0])
    # The last step has no line and no checkpoint, so the kept weights are sound.
    assert folders(workdir)[-1] == f"{step - 1}"
    lines = small_runs.lines(workdir, "train")
    assert [line["skipped"] for line in lines] == [0] * (step - 3) + [1, 1]
    assert lines[-1]["loss"] is None
    shutil.rmtree(start)  # a resumed run does not need it
    with pytest.raises(RunError, match=f"^{re.escape(str(error.value))}$"):
        small_runs.train(config, workdir)
    assert small_runs.lines(workdir, "train") == lines


def test_a_test_split_chooses_no_step_and_other_images_no_run(tmp_path, capsys):
    """Without a validation split the last step is the best."""
    for split, name, shade in itertools.product(("train", "test"), "ab", range(8)):
        write_plain(tmp_path, f"set/{split}/{name}/{shade}.bmp", color=(shade,) * 3)
    fields = {"data.name": f"folder:{tmp_path / 'set'}", "num_classes": 2}
    fields |= {"batch_size": 8, "eval_batch_size": 16}
    config = short_config(PLAIN, **fields)
    workdir = tmp_path / "run"
    small_runs.train(config, workdir)
    assert folders(workdir, "best") == ["4"]
    assert "(test)" in capsys.readouterr().out
    small_runs.train(config, workdir)  # the same images again
    write_plain(tmp_path, "set/test/b/1.bmp", color=(9, 9, 9))
    with refused("config.data.name has other images than the run in"):
        small_runs.train(config, workdir)


def test_a_run_is_not_resumed_with_another_teacher_or_mean(tmp_path):
    """The teacher's path stays; its weights change."""
    teacher = tmp_path / "teacher"
    fields = {"distill.kind": "soft", "teacher.weights": str(teacher)}
    config = RunConfig.from_config(short_config(PLAIN, fields))

    def begin(seed):
        model = config.create_dense_model()
        save(Pretrained(model, small_runs.draw_untrained(model, seed)), teacher)
        with trainer.open_run(trainer.set_up_run(config, tmp_path / "run")) as run:
            run.save()
            run.checkpoints.close()

    begin(0)
    begin(0)
    with refused("config.teacher.weights"):
        begin(1)
    file = tmp_path / "run" / "config.json"
    written = json.loads(file.read_text())
    written["model"]["mean"] = [0.1, 0.2, 0.3]  # complete_config has filled it
    file.write_text(json.dumps(written))
    with refused("mean or std"):
        begin(0)


@pytest.mark.slow
def test_a_run_of_two_programs_resumes_from_any_checkpoint(tmp_path, capsys):
    """All tokens in the first epoch, half of them in the second."""
    config = short_config(PLAIN, checkpoint_every_steps=4, keep_every_steps=3)
    config.reduction = "evit:keep_rate=0.5:blocks=(0,):rate_warmup_epochs=1"
    last = small_runs.train(config, tmp_path)
    assert folders(tmp_path) == ["10", "3", "6", "9"]
    for first in (3, 6):
        earlier = shutil.copytree(tmp_path, tmp_path / f"from {first}")
        shutil.rmtree(earlier / "checkpoints" / "best")
        for step in folders(earlier):
            if int(step) > first:
                shutil.rmtree(earlier / "checkpoints" / "latest" / step)
        assert small_runs.train(config, earlier) == last
        assert f"resuming from step {first} of 10" in capsys.readouterr().out
        lines = small_runs.unclocked_lines(earlier)
        assert lines == small_runs.unclocked_lines(tmp_path)
        arrays = small_runs.arrays(earlier, "latest")
        assert_same(arrays, small_runs.arrays(tmp_path, "latest"))


def test_the_pages_custom_loss_trains(tmp_path, monkeypatch):
    """1,438 digits, 479 a step: three steps."""
    monkeypatch.chdir(tmp_path)
    config = short_config(PLAIN, batch_size=479, epochs=1)
    space = {"config": RunConfig.from_config(config)}
    test_readme.run(test_readme.DOCS / "training.md", "import dataclasses", space)
    steps = small_runs.lines(tmp_path / "runs" / "focal", "train")
    assert [line["step"] for line in steps] == [1, 2, 3]
    # Weights that know nothing give each of 10 classes the probability 1/2.
    guessing = 10 * (1 - 1 / 2) ** 2 * math.log(2)
    assert steps[0]["loss"] == pytest.approx(guessing, rel=0.05)
    assert all(line["loss"] == pytest.approx(line["focal"]) for line in steps)
    assert steps[2]["loss"] < steps[0]["loss"]


# All random parts are on, in two micro-batches: 1,438 digits, 176 a step, 8 steps.
DRAWING = small_runs.DENSE | {"model.drop_path_rate": 0.2, "mixup": 0.8, "cutmix": 1.0}
DRAWING |= {"batch_size": 176, "grad_accum_steps": 2, "epochs": 1, "warmup_epochs": 0.4}


@pytest.mark.slow
def test_eight_devices_train_like_one(tmp_path):
    """Dense, because rounding may flip a reduction's near ties."""
    running = small_runs.start(tmp_path / "8", DRAWING, devices=8)
    small_runs.train(small_runs.quickstart_config(DRAWING), tmp_path / "1")
    assert forked_processes.statuses([running], timeout=300) == [0]
    runs = [small_runs.lines(tmp_path / name, "train") for name in "18"]
    losses = [[line["loss"] for line in lines] for lines in runs]
    assert len(losses[0]) == 8
    np.testing.assert_allclose(losses[1], losses[0], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_hosts_with_different_configs_are_refused(tmp_path):
    """Both name the field and leave no folder."""
    run = tmp_path / "run"
    processes = small_runs.start_two(run, small_runs.SMALL, lr=0.5)
    assert forked_processes.statuses(processes, timeout=100) == [2, 2]
    for process in (0, 1):
        output = run.with_name(f"run.{process}.log").read_text()
        last = output.strip().splitlines()[-1]
        assert last.startswith("error: config.lr is 0.5 on process 1, but 0.016 on")
    assert not run.exists()
