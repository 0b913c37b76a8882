"""Small sets of image files."""

import numpy as np
from PIL import Image


def write_images(folder, images):
    """Write 00.png, 01.png, .. into a new folder, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, pixels in enumerate(images):
        paths.append(folder / f"{number:02}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def noise(*shape):
    """Images of uint8 noise, [*shape, 3]."""
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)


def write_csv(folder, pixels, labels, inside=""):
    """The name "csv:FILE" of a set: images `inside`0.png, .. and labels in set.csv.

    pixels: [n, H, W, 3] uint8
    """
    rows = ["filename,label"]
    for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        rows.append(f"{inside}{i}.png,{label}")
        Image.fromarray(image).save(folder / f"{inside}{i}.png")
    (folder / "set.csv").write_text("\n".join(rows))
    return f"csv:{folder}/set.csv"


def write_plain(folder, *names, color=(0, 0, 0), side=16):
    """Write square images of one color to these names in a folder, and return it."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (side, side), color).save(path)
    return folder


def write_damaged(folder, side):
    """Write a folder with two images, a.png and c.png, and a damaged b.png."""
    first, second = write_images(folder, noise(2, side, side))
    first.rename(folder / "a.png")
    second.rename(folder / "c.png")
    (folder / "b.png").write_bytes(b"no image")
    return folder
