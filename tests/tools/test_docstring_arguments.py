import ast

import pytest

from tools import docstring_arguments

HEAD = '''
def add_noise(image, noise_level):
    """Add noise.

    {line}: explained
    """
'''
CLASS = '''
class Camera:
    """A camera.

    {line}: explained
    """

    width: int

    def __init__(self, focal_length):
        """Open it."""
'''


@pytest.mark.parametrize(
    "source, line, stale",
    [
        (HEAD, "image", []),
        (HEAD, "image, noise_level", []),
        (HEAD, "level", [(5, "level")]),
        (HEAD, "image, level", [(5, "level")]),
        (HEAD, "    level", []),  # a line of another explanation
        (HEAD, "Level", []),  # a sentence
        (CLASS, "width, focal_length", []),
        (CLASS, "height", [(5, "height")]),
    ],
)
def test_missing_arguments_are_found(source, line, stale):
    tree = ast.parse(source.format(line=line))
    assert [*docstring_arguments.stale_arguments(tree)] == stale


def test_the_command_fails_and_names_file_and_line(tmp_path, capsys):
    (tmp_path / "a.py").write_text(HEAD.format(line="level"))
    assert docstring_arguments.main([str(tmp_path)]) == 1
    assert f"{tmp_path}/a.py:5: " in capsys.readouterr().out
    (tmp_path / "a.py").write_text(HEAD.format(line="image"))
    assert docstring_arguments.main([str(tmp_path)]) == 0
