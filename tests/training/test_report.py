"""The table of a run's results; texts of a dry run are in test_trainer."""

import dataclasses
import time

from imagepiece_jax.training import logging, report, run_dir
from imagepiece_jax.training.checkpoint import Progress
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.training.logging import MetricWriter
from tests import runs
from tests.training import test_logging

LAST = {"acc1": 97.5, "acc5": 99.9, "loss": 0.1, "images": 359}
PROGRESS = Progress([1438, 359], [], {"acc1": 98.125, "step": 352}, LAST)


def rows(workdir, progress=PROGRESS, **fields):
    run = RunConfig.from_config(runs.configured(fields))
    table = report.final_table(workdir, run, run.create_model(), progress)
    return {line[:12].strip(): line[13:] for line in table.split("\n")}


def write_rates(workdir, *rates):
    """Lines of training of (step, images a second, steps skipped)."""
    writer = MetricWriter(workdir)
    for step, rate, skipped in rates:
        writer.write_line("train", step, throughput=rate, skipped=skipped)
        writer.write_line("eval", step, throughput=1.0)
    writer.close()


def test_results_cost_and_contents_of_the_folder(tmp_path):
    table = rows(tmp_path)
    assert table["accuracy"] == "top-1 97.50 %, top-5 99.90 % of 359 images"
    assert table["best"] == "98.12 % at step 352"
    assert table["tokens"].startswith("65 59 54 44 40 36 29 ")
    assert table["cost"] == "0.0158 GMACs; dense 0.0228, 1.44 times"
    best = rows(tmp_path, best_by="averages")["best"]
    assert best == "98.12 % at step 352, of averaged weights"
    averaged = dataclasses.replace(PROGRESS, last=LAST | {"ema_acc1": 96.25})
    assert rows(tmp_path, averaged)["accuracy"].endswith("; averaged weights 96.25 %")
    assert len(rows(tmp_path)) == 4
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "tokens.png").touch()
    table = rows(tmp_path)
    assert table["checkpoints"] == str(tmp_path / "checkpoints")
    assert table["picture"] == str(tmp_path / "tokens.png")
    assert "trace" not in table and "metrics" not in table


def test_time_and_rate_are_those_of_the_log(tmp_path):
    """64 images a step: 10 steps at 64 img/s, 10 at 6.4 and 2 at 12.8: 120 s."""
    write_rates(tmp_path, (10, 64.0, 0), (20, 6.4, 3), (22, 12.8, 1))
    writer = MetricWriter(tmp_path, step=22)
    writer.write_line("init", 22, acc1=72.25)
    writer.close()
    table = rows(tmp_path)
    assert table["at the start"] == "72.25 %, the dense model as given"
    assert table["time"] == (
        "02:00 of training, without compiling and evaluations; "
        "13 images a second (median)"
    )
    assert table["skipped"] == "4 of 22 steps, which were not finite"
    assert table["metrics"] == str(tmp_path / "metrics.jsonl")


def test_a_line_without_a_rate_counts_by_the_others(tmp_path):
    """A first step that compiled was not timed: 1 step at the median of the others."""
    write_rates(tmp_path, (1, None, 0), (11, 6.4, 0), (21, 6.4, 0))
    assert rows(tmp_path)["time"].startswith("03:30 of training")
    write_rates(tmp_path, (1, None, 0))
    assert "time" not in rows(tmp_path)


def test_the_productive_share_counts_each_step_once(tmp_path, monkeypatch):
    """Killed after step 7, the run goes on from step 4: three steps are taken twice."""
    clock = [1.7e9]
    monkeypatch.setattr(logging.time, "perf_counter", lambda: clock[0])

    def now():
        return time.strftime(run_dir.CLOCK, time.localtime(clock[0]))

    monkeypatch.setattr(run_dir, "_now", now)

    def train(steps, compiling):
        run_dir.record_start(tmp_path, {})
        log = test_logging.make(tmp_path, step=steps.start - 1)
        for step in log.timed(steps):
            clock[0] += 1 + compiling * (step == steps.start)
            log.record(step, test_logging.numbers())
            log.flush()
        log.close()

    train(range(1, 8), compiling=1000)
    assert "productive" not in rows(tmp_path)
    clock[0] += 500
    train(range(5, 11), compiling=100)
    clock[0] += 9  # an evaluation
    run_dir.record_end(tmp_path)
    wall = 1000 + 7 + 500 + 100 + 6 + 9
    share = f"{10 / wall:.0%} of 27:02 from the first start to the end"
    assert rows(tmp_path)["productive"] == share
    clock[0] += 9999  # to print the table again is no training
    run_dir.record_start(tmp_path, {})
    assert rows(tmp_path)["productive"] == share
