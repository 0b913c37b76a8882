import ast
import subprocess

import pytest

from tools import stale_names

FILES = ["camera/lens.py", "docs/lens.md", "tests/test_lens.py"]
CODE = """
class Box:
    def open_lid(self): ...

class Camera(Box):
    focal_length: int

    def __init__(self, image_size):
        self.lens_cap = image_size

class Shelf(Furniture):
    def put_down(self): ...

def take_picture(camera, is_dark):
    return camera.settings["shutter_speed"]
"""


@pytest.fixture(scope="module")
def known():
    names = stale_names.KnownNames(FILES)
    names.read("camera/lens.py", ast.parse(CODE))
    return names


FRESH = """
take_picture
take_picture(camera, is_dark=True)
Camera.focal_length
Camera.lens_cap
Camera.open_lid
Camera(image_size=..).lens_cap
Shelf.put_down
camera.lens.take_picture
lens.py
lens.take_picture
settings["shutter_speed"]
np.asarray
collections.abc.Mapping
os.path.join
camera/lens.py
lens.py:1 and test_NAME.py
tests/test_NAME.py
docs/lens.md and tests/
take_picture.py --image-size 3 --no-is_dark
see tests/*.py
plain English
height
1.5
reducer_BLOCK
"""
STALE = {
    "take_photo": "take_photo",
    "shoot(camera)": "shoot",
    "take_picture(camera, dark=True)": "dark",
    "Camera.take_picture": "Camera.take_picture",
    "Camera.lid_angle": "Camera.lid_angle",
    "Camera(image_size=..).lens_hood": "lens_hood",
    "camera.lens.open_lid": "camera.lens.open_lid",
    "np.as_array": "np.as_array",
    "os.path.joined": "os.path.joined",
    "lenses/camera.py": "lenses/camera.py",
    "docs/camera": "docs/camera",
    "make picture --image-width 3": "--image-width",
    "isDark": "isDark",
    "(...).take_photo": "....take_photo",
}


@pytest.mark.parametrize("text", FRESH.strip().splitlines())
def test_names_that_exist(text, known):
    assert [*stale_names.example_stale_names(text, known)] == []


@pytest.mark.parametrize("text, name", STALE.items())
def test_names_that_exist_nowhere(text, name, known):
    assert [*stale_names.example_stale_names(text, known)] == [name]


def test_the_command_fails_and_names_file_and_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "--quiet"], check=True)
    quoted = "`open_{}`"
    (tmp_path / "box.py").write_text(f"open_lid = 1\n# {quoted.format('lid')}\n")
    page = f"Box\n```\n{quoted.format('box')}\n```\nSee `print` and\n"
    (tmp_path / "box.md").write_text(page + quoted.format("lid"))
    (tmp_path / "CHANGELOG.md").write_text(quoted.format("door"))
    assert stale_names.main() == 0
    (tmp_path / "box.md").write_text(page + quoted.format("door"))
    assert stale_names.main() == 1
    assert capsys.readouterr().out == "box.md:6: open_door exists nowhere\n"
    gone = f"{quoted.format('door')} of revision 01234567"
    (tmp_path / "box.md").write_text(page + gone)
    assert stale_names.main() == 0
