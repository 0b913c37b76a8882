"""The list of single faults, and the tool that tries them."""

import collections
import subprocess

import pytest

from tools import mutations

FAULTS = mutations.read_list()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault["id"])
def test_a_fault_still_applies(fault):
    """Its text stands once in its file."""
    assert mutations.stale_reason(fault) is None
    assert fault["old"] != fault["new"]
    assert fault["breaks"]


def test_the_tests_that_catch_the_faults_are_there():
    tests = set()
    for fault in FAULTS:
        tests.update(fault["tests"])
    assert not {test for test in tests if not mutations.is_there(test)}


def test_there_are_a_hundred_of_all_rooms():
    assert len({fault["id"] for fault in FAULTS}) == len(FAULTS) == 100
    rooms = collections.Counter(fault["file"].split("/")[1] for fault in FAULTS)
    wanted = {"reduction": 29, "training": 20, "data": 5, "input": 5, "evaluate": 5}
    assert wanted.items() <= rooms.items()


CODE = "def half(x):\n    return x / 2\n\n\ndef twice(x):\n    return x * 2\n"
TEST = "from package.room import half\n\n\ndef test_half():\n    assert half(4) == 2\n"


@pytest.fixture
def tree(tmp_path):
    """A repository of one module, of which one function is tested."""
    files = {
        "package/__init__.py": "",
        "package/room.py": CODE,
        "tests/test_room.py": TEST,
        ".gitignore": "*.pyc\n",
    }
    for name, text in files.items():
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_text(text)
    subprocess.run(["git", "init", "-q", tmp_path / "tree"], check=True)
    return tmp_path / "tree"


def fault(old, new, tests="tests/test_room.py"):
    file = "package/room.py"
    return {"id": old, "file": file, "old": old, "new": new, "tests": [tests]}


def test_faults_are_caught_or_not_and_leave_the_tree_as_it_was(tree):
    faults = [
        fault("x / 2", "x / 3"),
        fault("x * 2", "x * 3"),
        fault("x + 2", "x + 3"),
        fault("(x)", "(y)"),
        fault("half", "third", "tests/test_attic.py"),
    ]
    lines = []
    results = mutations.attempt_all(faults, 2, tree, lines.append)
    assert results["x / 2"] == ("caught", "tests/test_room.py::test_half")
    assert results["x * 2"] == ("NOT caught", "")
    assert results["x + 2"].verdict == results["(x)"].verdict == "stale"
    assert results["(x)"].by == "package/room.py has its text 2 times"
    assert results["half"].verdict == "broken"
    (tree / "tests/test_room.py").write_text(TEST.replace("== 2", "== 3"))
    (result,) = mutations.attempt_all(faults[1:2], root=tree, report=len).values()
    said = "tests/test_room.py::test_half fails without the fault, too"
    assert result == ("broken", said)
    assert sorted(lines)[0] == "NOT caught x * 2"
    assert (tree / "package/room.py").read_text() == CODE


def test_the_file_that_a_text_has_moved_to_is_named(tree):
    (tree / "package" / "room.py").rename(tree / "package" / "hall.py")
    moved = fault("x / 2", "x / 3")
    gone = fault("x + 2", "x + 3")
    assert "is in package/hall.py now" in mutations.stale_reason(moved, tree)
    assert "nor has another file" in mutations.stale_reason(gone, tree)
