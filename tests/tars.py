"""ImageNet in miniature: a few images in tars that are named as the real ones."""

import io
import tarfile

import numpy as np
from PIL import Image

TRAIN = "ILSVRC2012_img_train.tar"
VAL = "ILSVRC2012_img_val.tar"


def photo(seed, width=60, height=48):
    """A PIL image of smooth colors, which JPEG keeps well; another for every seed."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image, file_format="JPEG", **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def tar(files):
    """The bytes of a tar of {name: bytes}."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def images(per_class=3, val=4):
    """(train, val) of small photographs: {wnid: {name: bytes}}, {name: bytes}.

    The classes are the first, number 230 and the last of ImageNet's.
    """
    train = {
        wnid: {
            f"{wnid}_{7 * i + 1}.JPEG": encoded(photo(100 * k + i))
            for i in range(per_class)
        }
        for k, wnid in enumerate(("n01440764", "n02105855", "n15075141"))
    }
    numbers = range(1, val + 1)
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in numbers]
    return train, {name: encoded(photo(1000 + i)) for i, name in enumerate(names)}


def write_tars(folder, train, val):
    """Both tars of {wnid: {name: bytes}} and {name: bytes}; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    classes = {f"{wnid}.tar": tar(files) for wnid, files in train.items()}
    (folder / TRAIN).write_bytes(tar(classes))
    (folder / VAL).write_bytes(tar(val))
    return folder
