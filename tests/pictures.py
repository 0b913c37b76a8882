"""Small sets of images on disk."""

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
