"""One entry point of all commands: python -m imagepiece_jax COMMAND, or imagepiece.

A process imports only the module of its own command: the flags of two would collide.
Other modules are imported where they are used, after signals are heard.
"""

import sys

from imagepiece_jax.common import signals


def commands() -> dict:
    """{name: file} of all commands."""
    import pathlib

    folder = pathlib.Path(__file__).resolve().parent / "commands"
    return {file.stem: file for file in sorted(folder.glob("[!_]*.py"))}


def listing() -> str:
    """A line for every command: its name, and the first line of its docstring."""
    import ast

    lines = ["python -m imagepiece_jax COMMAND [flags]; COMMAND --help lists its flags"]
    for name, file in commands().items():
        summary, _, _ = ast.get_docstring(ast.parse(file.read_bytes())).partition("\n")
        lines.append(f"  {name:15}{summary}")
    return "\n".join(lines)


def run_command(name: str):
    """Run a command, by its name, with the flags in sys.argv; it ends the process."""
    signals.end_process()
    import runpy

    module = f"imagepiece_jax.commands.{name}"
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def main():
    signals.end_process()
    name = sys.argv[1] if sys.argv[1:] else "--help"
    names = commands()
    if name in ("--help", "-help", "-h"):
        print(listing())
    elif name == "--version":
        from imagepiece_jax.common.version import __version__

        print(f"imagepiece_jax {__version__}")
    elif name in names:
        del sys.argv[1]
        run_command(name)
    else:
        from imagepiece_jax.errors import InputError, suggestion

        hint = suggestion(name, names, f"allowed: {', '.join(names)}")
        print(f"error: {name!r} is not a command; {hint}", file=sys.stderr)
        return InputError.status
    return 0


if __name__ == "__main__":
    sys.exit(main())
