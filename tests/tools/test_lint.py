import ast
import subprocess

import pytest

from tools import lint

FILES = ["camera/lens.py", "docs/lens.md", "tests/test_lens.py"]
CODE = """
def take_picture(camera, is_dark):
    return camera.lens_cap, camera.settings["shutter_speed"]
"""
FRESH = """
take_picture(camera, is_dark=True)
camera.lens_cap and camera.lens.take_picture
settings["shutter_speed"]
np.asarray and collections.abc.Mapping
lens.py:1 and camera/lens.py and test_NAME.py and tests/test_NAME.py
docs/lens.md and tests/ and tests/*.py
take_picture.py --lens-cap 3 --no-is_dark
plain English of height 1.5
"""
STALE = {
    "take_photo": "take_photo",
    "shoot(camera)": "shoot",
    "take_picture(camera, dark=True)": "dark",
    "camera.lens_hood": "camera.lens_hood",
    "os.path.joined": "os.path.joined",
    "lenses/camera.py": "lenses/camera.py",
    "docs/camera": "docs/camera",
    "make picture --image-width 3": "--image-width",
    "isDark": "isDark",
}


def test_names_exist_or_not():
    known = lint.KnownNames(FILES)
    known.read(ast.parse(CODE))
    for line in FRESH.strip().splitlines():
        for text in line.split(" and "):
            assert [*lint.example_stale_names(text, known)] == []
    for text, name in STALE.items():
        assert [*lint.example_stale_names(text, known)] == [name]


HEAD = '''
def add_noise(image, noise_level):
    """Add noise.

    {line}: explained
    """
'''


@pytest.mark.parametrize(
    "line, stale",
    [
        ("image, noise_level", []),
        ("image, level", [(5, "level")]),
        ("    level", []),  # a line of another explanation
        ("Level", []),  # a sentence
    ],
)
def test_explained_arguments_exist(line, stale):
    assert [*lint.stale_arguments(ast.parse(HEAD.format(line=line)))] == stale


def test_the_command_fails_and_names_file_and_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "--quiet"], check=True)
    quoted = "`open_{}`"
    (tmp_path / "box.py").write_text(f"open_lid = 1\n# {quoted.format('lid')}\n")
    page = f"Box\n```\n{quoted.format('box')}\n```\nSee `print` and\n"
    gone = f"{quoted.format('door')} of revision 01234567"
    (tmp_path / "box.md").write_text(f"{page}{quoted.format('lid')}, {gone}")
    (tmp_path / "CHANGELOG.md").write_text(quoted.format("door"))
    assert lint.main() == 0
    (tmp_path / "box.md").write_text(page + quoted.format("door"))
    (tmp_path / "imagepiece_jax").mkdir()
    (tmp_path / "imagepiece_jax/a.py").write_text(HEAD.format(line="level"))
    assert lint.main() == 1
    assert capsys.readouterr().out.splitlines() == [
        "imagepiece_jax/a.py:5: no argument level exists",
        "box.md:6: open_door exists nowhere",
    ]
