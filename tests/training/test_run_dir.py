"""A folder holds one run; what ran it is written down, and never half."""

import json
import os
import subprocess

import pytest

from imagepiece_jax.errors import InputError, RunError
from imagepiece_jax.training import run_dir
from imagepiece_jax.training.run_dir import git_revision, record_run, replace_file

CONFIG = {
    "lr": 1e-3,
    "epochs": 300,
    "reduction": {"name": "imagepiece", "blocks": (0, 1), "keep_rate": 0.7},
    "data": {"workers": 4, "name": "digits"},
    "empty": {},
}


def changed(**fields):
    return {**CONFIG, **fields}


def test_config_and_versions_are_written(tmp_path):
    workdir = tmp_path / "new" / "run"
    record_run(workdir, CONFIG, extra={"jax": "1.2.3"})
    want = json.loads(json.dumps(CONFIG))
    assert json.loads((workdir / "config.json").read_text()) == want
    (start,) = json.loads((workdir / "run.json").read_text())["starts"]
    assert start["jax"] == "1.2.3"
    assert start["git"] == git_revision()
    assert sorted(p.name for p in workdir.iterdir()) == ["config.json", "run.json"]


def test_same_config_goes_on_and_every_start_is_kept(tmp_path):
    record_run(tmp_path, CONFIG, extra={"jax": "1"})
    record_run(tmp_path, json.loads(json.dumps(CONFIG)), extra={"jax": "2"})
    starts = json.loads((tmp_path / "run.json").read_text())["starts"]
    assert [start["jax"] for start in starts] == ["1", "2"]


def test_a_retired_field_that_did_nothing_is_ignored(tmp_path):
    old = changed(reduction=CONFIG["reduction"] | {"round_to": 0})
    record_run(tmp_path, old)
    record_run(tmp_path, CONFIG)
    assert "round_to" not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize(
    "config, sentence",
    [
        (changed(lr=2e-3), "lr = 0.001, but this config has 0.002"),
        (changed(epochs=300.0), "epochs = 300, but this config has 300.0"),
        (
            changed(reduction={**CONFIG["reduction"], "blocks": (0, 2)}),
            r"reduction.blocks = \[0, 1\], but this config has \[0, 2\]",
        ),
        (changed(new=1), "new = no such field, but this config has 1"),
        (
            changed(data={"workers": 4}),
            'data.name = "digits", but this config has no such field',
        ),
        (changed(empty={"a": 1}), "empty.a = no such field, but this config has 1"),
    ],
)
def test_another_run_is_refused_with_the_ways_out(tmp_path, config, sentence):
    record_run(tmp_path, CONFIG)
    before = (tmp_path / "config.json").read_text(), (tmp_path / "run.json").read_text()
    with pytest.raises(InputError, match=sentence) as error:
        record_run(tmp_path, config, may_change=("data.workers",))
    assert str(tmp_path) in str(error.value) and "--workdir" in str(error.value)
    assert before == (
        (tmp_path / "config.json").read_text(),
        (tmp_path / "run.json").read_text(),
    )


@pytest.mark.parametrize("field", ["data.workers", "data"])
def test_what_may_change_changes(tmp_path, field):
    record_run(tmp_path, CONFIG)
    more = changed(data={"workers": 8, "name": "digits"})
    record_run(tmp_path, more, may_change=(field,))
    assert json.loads((tmp_path / "config.json").read_text())["data"]["workers"] == 8
    with pytest.raises(InputError, match="data.workers = 8, but this config has 4"):
        record_run(tmp_path, CONFIG, may_change=("dat", "data.work"))


def test_unreadable_config_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="config.json is no valid JSON"):
        record_run(tmp_path, CONFIG)


def test_other_processes_compare_but_write_nothing(tmp_path):
    record_run(tmp_path / "a", CONFIG, is_main=False)
    assert not (tmp_path / "a").exists()
    record_run(tmp_path, CONFIG)
    with pytest.raises(InputError, match="lr"):
        record_run(tmp_path, changed(lr=1.0), is_main=False)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    replace_file(path, "old")

    def fail(_):
        raise OSError("disk is full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RunError, match=r"file cannot be written \(disk is full\)"):
        replace_file(path, "new and longer")
    assert path.read_text() == "old"


def git(folder, *words):
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    done = subprocess.run(
        [*command, *words], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_git_revision_of_tracked_code_only(tmp_path, monkeypatch):
    package = tmp_path / "package"
    package.mkdir()
    (package / "errors.py").write_text("1\n")
    monkeypatch.setattr(run_dir, "PACKAGE", package)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_revision() is None
    git(tmp_path, "init", "-q")
    assert git_revision() is None  # somebody's repository, but not this code's
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "one")
    git(tmp_path, "tag", "-a", "v1", "-m", "tag")
    revision = git(tmp_path, "rev-parse", "HEAD")
    assert git_revision() == revision
    (package / "errors.py").write_text("2\n")
    assert git_revision() == revision + "-dirty"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_revision() is None  # no git installed
