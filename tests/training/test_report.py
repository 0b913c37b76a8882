"""What a person is told after a run: results, cost, time, and where things are."""

from configs import quickstart
from imagepiece_jax.training import from_config, report
from imagepiece_jax.training.metrics import MetricWriter

META = {
    "last": {"acc1": 97.5, "acc5": 99.9, "loss": 0.1, "images": 359},
    "best": {"acc1": 98.125, "step": 352},
}


def rows(workdir, meta=META):
    config = quickstart.get_config()
    model, dense = from_config.model(config), from_config.dense(config)
    table = report.final_table(workdir, config, model, dense, meta)
    return {line[:12].strip(): line[13:] for line in table.split("\n")}


def test_results_and_cost(tmp_path):
    told = rows(tmp_path)
    assert told["accuracy"] == "top-1 97.50 %, top-5 99.90 % of 359 images"
    assert told["best"] == "98.12 % at step 352"
    assert told["tokens"].startswith("65 59 54 44 40 36 29 ")
    assert told["cost"] == "0.0158 GMACs; dense 0.0228, 1.44 times"
    averaged = META | {"last": META["last"] | {"ema_acc1": 96.25}}
    assert rows(tmp_path, averaged)["accuracy"].endswith("; averaged weights 96.25 %")


def test_what_is_in_the_folder_is_named(tmp_path):
    assert len(rows(tmp_path)) == 4
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "tokens.png").touch()
    told = rows(tmp_path)
    assert told["checkpoints"] == str(tmp_path / "checkpoints")
    assert told["picture"] == str(tmp_path / "tokens.png")
    assert "trace" not in told and "metrics" not in told


def test_time_and_rate_are_those_of_the_log(tmp_path):
    """64 images a step: 10 steps at 64 img/s, 10 at 6.4 and 2 at 12.8: 120 s."""
    writer = MetricWriter(tmp_path)
    writer.write("init", 0, acc1=72.25)
    for step, rate, skipped in ((10, 64.0, 0), (20, 6.4, 3), (22, 12.8, 1)):
        writer.write("train", step, throughput=rate, skipped=skipped)
        writer.write("eval", step, throughput=1.0)
    writer.close()
    told = rows(tmp_path)
    assert told["at the start"] == "72.25 %, the dense model as given"
    assert told["time"] == (
        "02:00 of training, without compiling and evaluations; "
        "13 images a second (median)"
    )
    assert told["skipped"] == "4 of 22 steps, which were not finite"
    assert told["metrics"] == str(tmp_path / "metrics.jsonl")


def test_a_line_without_a_rate_counts_by_the_others(tmp_path):
    """A first step that compiled was not timed: 1 step at the median of the others."""
    writer = MetricWriter(tmp_path)
    for step, rate in ((1, None), (11, 6.4), (21, 6.4)):
        writer.write("train", step, throughput=rate, skipped=0)
    writer.close()
    assert rows(tmp_path)["time"].startswith("03:30 of training")
    (tmp_path / "metrics.jsonl").unlink()
    writer = MetricWriter(tmp_path)
    writer.write("train", 1, throughput=None, skipped=0)
    writer.close()
    assert "time" not in rows(tmp_path)
