"""Class folders' files and labels, like torchvision's and timm's."""

import pytest
from PIL import Image
from timm.data.readers import reader_image_folder as readers
from torchvision import datasets

from imagepiece_jax.data.sources.registry import open_source
from imagepiece_jax.errors import InputError


def write(root, *files):
    for file in files:
        path = root / "val" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)


def named_labels(root):
    source = open_source(f"folder:{root}", "val")
    names = [source.image_name(index) for index in range(len(source))]
    return {*zip(names, source.labels.tolist(), strict=True)}


def test_subfolders_are_read_like_torchvision(tmp_path):
    write(tmp_path, "bee/1.png", "bee/deep/er/2.jpg", "ant/x.ppm", "ant/y/z.webp")
    theirs = datasets.ImageFolder(tmp_path / "val").samples
    assert named_labels(tmp_path) == {*theirs}
    assert len(theirs) == 4


@pytest.mark.parametrize("count", [10, 12])
def test_numbered_folders_have_labels_if_both_libraries_agree(tmp_path, count):
    write(tmp_path, *(f"{number}/0.png" for number in range(count)))
    by_number = readers.find_images_and_targets(str(tmp_path / "val"))[0]
    as_text = datasets.ImageFolder(tmp_path / "val").samples
    if {*by_number} == {*as_text}:
        assert named_labels(tmp_path) == {*as_text}
        return
    assert count == 12  # torchvision takes "2" for class 4
    with pytest.raises(InputError, match="class '11' before '2'"):
        named_labels(tmp_path)
