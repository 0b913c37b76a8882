"""Workflows of GitHub call the Makefile."""

import re

import pytest
import yaml

from tests.runs import ROOT
from tests.test_packaging import PROJECT

GITHUB = ROOT / ".github"
WORKFLOWS = {
    path.stem: yaml.load(path.read_text("utf-8"), yaml.BaseLoader)
    for path in (GITHUB / "workflows").iterdir()
}
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")


def commands(workflow):
    """Every `run` of a workflow."""
    for job in workflow["jobs"].values():
        yield from (step["run"] for step in job["steps"] if "run" in step)


def targets(lines):
    return [line.split()[1] for line in lines if line.startswith("make ")]


def test_ci_makes_what_every_change_must_pass_on_every_python():
    needed = targets((ROOT / ".ci" / "run").read_text("utf-8").splitlines())
    assert set(needed) <= set(targets(commands(WORKFLOWS["ci"])))
    assert needed == ["lint", "test"]
    matrix = WORKFLOWS["ci"]["jobs"]["test"]["strategy"]["matrix"]
    classifiers = (line.rpartition(" ")[2] for line in PROJECT["classifiers"])
    assert matrix["python"] == [v for v in classifiers if re.fullmatch(r"3\.\d+", v)]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_calls_targets_that_exist(name):
    workflow = WORKFLOWS[name]
    lines = [*commands(workflow)]
    assert targets(lines)
    for line in lines:
        assert "pip install" not in line, line  # the Makefile does that
        for lock in re.findall(r"LOCK=(\w+)", line):
            assert (ROOT / "locks" / f"{lock}.txt").is_file()
    for target in targets(lines):
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target
    assert "permissions" in workflow
    for job in workflow["jobs"].values():
        assert int(job["timeout-minutes"]) <= 120
        for step in job["steps"]:
            assert re.fullmatch(
                r"actions/[\w-]+@v\d+", step.get("uses", "actions/x@v1")
            )
