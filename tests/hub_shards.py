"""ImageNet in miniature as the Hugging Face hub has it, written by hand."""

import json

import pytest

from tests import tars

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

# Labels of the classes of `tars.images`, and of its validation images: Caffe's val.txt.
LABELS = {"n01440764": 0, "n02105855": 230, "n15075141": 999}
VALIDATION = (65, 970, 230, 809)
# WordNet IDs of these four labels.
WNIDS = ("n01751748", "n07714571", "n02105855", "n04120489")


def rows(per_class=3):
    """{split: [(official name without its ending, label, image)]} of `tars.images`."""
    train, val = tars.images(per_class)
    train_rows = []
    for wnid, files in train.items():
        for name, data in files.items():
            train_rows.append((name.removesuffix(".JPEG"), LABELS[wnid], data))
    names = [name.removesuffix(".JPEG") for name in sorted(val)]
    images = [val[name] for name in sorted(val)]
    validation = list(zip(names, VALIDATION, images, strict=True))
    return {"train": train_rows, "validation": validation}


def sample(key, label, image):
    """Files of a sample, as in timm/imagenet-1k-wds."""
    about = {"label": label, "filename": f"n0/{key}.JPEG", "height": 48, "width": 60}
    return {
        f"{key}.cls": str(label).encode(),
        f"{key}.jpg": image,
        f"{key}.json": json.dumps(about).encode(),
    }


def shards(images, count=2):
    """The images of a split in so many parts."""
    return [images[number::count] for number in range(count)]


def write_tars(folder, splits):
    """Tars with the names of timm/imagenet-1k-wds; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, images in splits.items():
        for number, part in enumerate(shards(images)):
            files = {}
            for row in part:
                files |= sample(*row)
            path = folder / f"imagenet1k-{split}-{number:04d}.tar"
            path.write_bytes(tars.tar(files))
    return folder


def hub_name(name, label):
    """A file name as in ILSVRC/imagenet-1k: with the WordNet ID once more."""
    known = dict(zip(VALIDATION, WNIDS, strict=True))
    known |= {number: wnid for wnid, number in LABELS.items()}
    return f"{name}_{known[label]}.JPEG"


def table(images):
    """Columns image and label as `datasets` has them."""
    kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    column = [
        {"bytes": image, "path": hub_name(name, label)} for name, label, image in images
    ]
    labels = [label for _, label, _ in images]
    return pyarrow.table({"image": pyarrow.array(column, kind), "label": labels})


def write_parquet(folder, splits, **options):
    """Files with the names of ILSVRC/imagenet-1k; the folder."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for split, images in splits.items():
        for number, part in enumerate(shards(images)):
            path = folder / "data" / f"{split}-{number:05d}-of-00002.parquet"
            parquet.write_table(table(part), path, **options)
    return folder
