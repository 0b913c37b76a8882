"""Single faults, tried one by one: does a test catch each of them?

    python -m tools.mutations [--ids rank-ties no-fsync] [-j 2] [--record]

mutations.json lists what a person could get wrong in moving code: in `file` the text
`old` becomes `new`, which `breaks` something, and one of `tests` fails. Each is applied
to a copy of the working tree, where its tests run until the first failure. A fault is
"caught" by that test, or "NOT caught"; "stale" where the text does not stand exactly
once in its file; "broken" where pytest could not run the tests, or where the one that
failed does so without the fault, too.
"""

import argparse
import concurrent.futures
import importlib.util
import json
import os
import pathlib
import queue
import re
import shutil
import subprocess
import sys
import tempfile
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
LIST = ROOT / "tools" / "mutations.json"
PATIENCE = 900.0  # seconds for the tests of one fault
CAUGHT = "caught"
NOT_CAUGHT = "NOT caught"
STALE = "stale"
BROKEN = "broken"


class Trial(NamedTuple):
    """The verdict on a fault; `by`: the test that failed, or the reason."""

    verdict: str
    by: str = ""


def read_list(path=LIST):
    """The faults, a list of dicts."""
    return json.loads(pathlib.Path(path).read_text("utf-8"))


def places(mutation, root=ROOT):
    """{file: how often it has the old text} of a fault, files without it left out.

    Where its own file has it, no other is looked at.
    """
    expected = root / mutation["file"]
    files = [expected] if expected.is_file() else []
    if not files or mutation["old"] not in expected.read_text("utf-8"):
        files = sorted(root.rglob("*.py"))
    counts = {
        str(file.relative_to(root)): file.read_text("utf-8").count(mutation["old"])
        for file in files
        if not {*file.relative_to(root).parts} & {".venv", "tests", "tools"}
    }
    return {file: count for file, count in counts.items() if count}


def stale_reason(mutation, root=ROOT):
    """Why a fault cannot be applied, in a sentence; None where it can."""
    counts = places(mutation, root)
    if counts == {mutation["file"]: 1}:
        return None
    if mutation["file"] in counts:
        return f"{mutation['file']} has its text {counts[mutation['file']]} times"
    if counts:
        return f"its text is in {', '.join(counts)} now"
    return f"{mutation['file']} does not have its text, nor has another file"


def is_there(test, root=ROOT):
    """Whether a test, FILE::NAME, or a file or folder of tests exists."""
    file, _, name = test.partition("::")
    if not name:
        return (root / file).exists()
    return (root / file).is_file() and f"def {name}(" in (root / file).read_text()


def copy_tree(folder, root=ROOT):
    """A copy of the files that git tracks, or would, as they are now."""
    words = ["git", "-C", str(root), "ls-files", "-z", "-co", "--exclude-standard"]
    listed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    for name in listed.split("\0")[:-1]:
        if (root / name).is_file():  # else it is deleted, and not committed yet
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, folder / name)
    return folder


def run_tests(tests, tree):
    """The Trial of these tests in a copy of the tree, up to the first failure."""
    words = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "--tb=no"]
    words += ["-rfE", "-p", "no:cacheprovider", *tests]
    variables = os.environ | {"PYTHONPATH": str(tree)}
    try:
        done = subprocess.run(
            words,
            cwd=tree,
            env=variables,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return Trial(BROKEN, f"its tests took more than {PATIENCE:.0f} s")
    if done.returncode == 0:
        return Trial(NOT_CAUGHT)
    failed = re.search(r"^(?:FAILED|ERROR) (\S+::\w+)", done.stdout, re.MULTILINE)
    if done.returncode == 1 and failed:
        return Trial(CAUGHT, failed[1])
    output = (done.stdout + done.stderr).strip().splitlines()
    return Trial(BROKEN, output[-1] if output else f"status {done.returncode}")


def attempt(mutation, tree, sound):
    """Apply a fault in `tree`, a copy; run its tests; take it back.

    sound: {test: whether it passes without a fault}, as far as that is known.
    """
    if reason := stale_reason(mutation, tree):
        return Trial(STALE, reason)
    file = tree / mutation["file"]
    right = file.read_text("utf-8")
    compiled = pathlib.Path(importlib.util.cache_from_source(file))
    try:
        # Python knows compiled files by size and second: one may be another text's.
        compiled.unlink(missing_ok=True)
        file.write_text(right.replace(mutation["old"], mutation["new"]), "utf-8")
        result = run_tests(mutation["tests"], tree)
    finally:
        file.write_text(right, "utf-8")
        compiled.unlink(missing_ok=True)
    if result.verdict == CAUGHT and result.by not in sound:
        sound[result.by] = run_tests([result.by], tree).verdict == NOT_CAUGHT
    if result.verdict == CAUGHT and not sound[result.by]:
        return Trial(BROKEN, f"{result.by} fails without the fault, too")
    return result


def attempt_all(mutations, jobs=1, root=ROOT, report=print):
    """{id: Trial}, `jobs` faults at a time, each job in a copy of its own."""
    trees = queue.SimpleQueue()
    results = {}
    sound = {}

    def one(mutation):
        tree = trees.get()
        try:
            return attempt(mutation, tree, sound)
        finally:
            trees.put(tree)

    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        for number in range(jobs):
            trees.put(copy_tree(pathlib.Path(folder, str(number)), root))
        with concurrent.futures.ThreadPoolExecutor(jobs) as executor:
            futures = {executor.submit(one, m): m["id"] for m in mutations}
            for future in concurrent.futures.as_completed(futures):
                name = futures[future]
                result = future.result()
                results[name] = result
                report(f"{result.verdict:10s} {name}: {result.by}".rstrip(": "))
    return results


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ids", nargs="+", help="these faults alone")
    parser.add_argument("-j", "--jobs", type=int, default=1, help="faults at a time")
    parser.add_argument(
        "--record", action="store_true", help="enter the test that caught each"
    )
    flags = parser.parse_args(argv)
    every = read_list()
    by_id = {mutation["id"]: mutation for mutation in every}
    if unknown := [name for name in flags.ids or () if name not in by_id]:
        parser.error(f"no fault is called {', '.join(unknown)}")
    chosen = [by_id[name] for name in flags.ids] if flags.ids else every

    def report(line):
        print(line, flush=True)

    results = attempt_all(chosen, flags.jobs, report=report)
    verdicts = [result.verdict for result in results.values()]
    print(f"{verdicts.count(CAUGHT)} of {len(verdicts)} caught")
    if flags.record:
        for name, result in results.items():
            if result.verdict == CAUGHT:
                by_id[name]["tests"] = [result.by]
        text = json.dumps(every, indent=1, ensure_ascii=False)
        LIST.write_text(text + "\n", "utf-8")
    return int(set(verdicts) != {CAUGHT})


if __name__ == "__main__":
    sys.exit(main())
