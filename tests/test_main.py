"""The one entry point: what it lists, starts and refuses."""

import json

import pytest

from imagepiece_jax import __main__ as entry
from tests.command import sentence, start

COMMANDS = ["benchmark", "compare", "describe", "doctor", "evaluate", "export"]
COMMANDS += ["features", "predict", "recover", "visualize"]


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_without_a_command_it_lists_them(words):
    first, *lines = start("-m", "imagepiece_jax", *words).quiet().out.splitlines()
    assert first.startswith("python -m imagepiece_jax COMMAND")
    assert [line.split()[0] for line in lines] == COMMANDS
    assert all(len(line) <= 110 for line in lines)


@pytest.mark.parametrize(
    "word, said",
    [
        ("evalute", "'evalute' is not a command; did you mean evaluate?"),
        ("--config", f"'--config' is not a command; allowed: {', '.join(COMMANDS)}"),
    ],
)
def test_another_word_is_one_sentence(word, said):
    ended = start("-m", "imagepiece_jax", word, "--zebra", imported=True)
    assert sentence(ended) == said


LOADED = """
import atexit, json, runpy, sys
names = ("imagepiece_jax.", "absl", "jax", "flax", "ml_collections")
loaded = lambda: [name for name in sys.modules if name.startswith(names)]
atexit.register(lambda: print("\\n" + json.dumps(loaded())))
runpy.run_module("imagepiece_jax", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_its_own_command_alone(command):
    """And names no flag of another."""
    ended = start("-c", LOADED, command, "--help").quiet()
    *lines, modules = ended.out.splitlines()
    modules = json.loads(modules)
    assert not {"jax", "flax", "ml_collections"} & {*modules}
    own = [module for module in modules if module.startswith("imagepiece_jax.")]
    assert len(own) <= 25  # flags, and the files of configs, but no field of a run
    assert "imagepiece_jax.config.run" not in own
    others = [m for m in modules if m.startswith("imagepiece_jax.commands.")]
    others = [m for m in others if ".commands._" not in m]  # which are no commands
    assert others == []  # its own is __main__
    text = entry.commands()[command].read_text("utf-8")
    assert lines[1 if not lines[0] else 0].strip() in text


INTERRUPTED = """
import signal, sys
from imagepiece_jax.__main__ import main
class Interrupting:
    def find_spec(name, path, target=None):
        if name == sys.argv[-1]:
            signal.raise_signal(int(sys.argv[-2]))
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` ignores it
sys.meta_path.insert(0, Interrupting)
main()
"""


@pytest.mark.parametrize("module", ["runpy", "absl", "imagepiece_jax.config.files"])
@pytest.mark.parametrize("signum, said", [(2, "interrupted"), (15, "terminated")])
def test_a_signal_while_a_command_is_imported(module, signum, said):
    ended = start("-c", INTERRUPTED, "describe", "--help", signum, module)
    assert (ended.status, ended.out, ended.err) == (128 + signum, "", f"{said}\n")
