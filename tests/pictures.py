"""Small sets of images on disk."""

import numpy as np
from PIL import Image


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
    """The folder, with square images of one color in files of these names."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (side, side), color).save(path)
    return folder


def write_damaged(folder, side):
    """The new folder of two images, a.png and c.png, and of b.png, which is none."""
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)
    for name, image in zip("ac", pixels, strict=True):
        Image.fromarray(image).save(folder / f"{name}.png")
    (folder / "b.png").write_bytes(b"no image")
    return folder
