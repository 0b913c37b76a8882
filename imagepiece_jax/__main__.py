"""Entry point of all commands: imagepiece COMMAND, or python -m imagepiece_jax.

A process imports only its command's module.
"""

import ast
import importlib
import pathlib
import sys

from imagepiece_jax import __version__, cli
from imagepiece_jax.errors import InputError


def command_files() -> dict[str, pathlib.Path]:
    """{name: file} of all commands."""
    folder = pathlib.Path(__file__).resolve().parent / "commands"
    return {file.stem: file for file in sorted(folder.glob("[!_]*.py"))}


def command_listing() -> str:
    """List the commands: name, and first line of the module docstring."""
    lines = ["imagepiece COMMAND ..; COMMAND --help has its options"]
    for name, file in command_files().items():
        # Parsed, because an import would load the libraries of all commands.
        docstring = ast.get_docstring(ast.parse(file.read_bytes())) or name
        lines.append(f"  {name:15}{docstring.splitlines()[0]}")
    return "\n".join(lines)


def main() -> None:
    cli.run_and_exit(_run_command)


def _run_command() -> None:
    """Run the command that the first word of sys.argv names."""
    name = sys.argv[1] if sys.argv[1:] else "--help"
    files = command_files()
    if name in ("--help", "-h"):
        print(command_listing())
    elif name == "--version":
        print(f"imagepiece_jax {__version__}")
    elif name in files:
        module = importlib.import_module(f"imagepiece_jax.commands.{name}")
        del sys.argv[1]
        cli.run_command(module.main, f"imagepiece {name}")
    else:
        command_names = ", ".join(files)
        raise InputError(f"{name!r} is not a command; the commands are {command_names}")


if __name__ == "__main__":
    main()
