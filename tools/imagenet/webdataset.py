"""Tars of the webdataset format: images and labels as files that share a key.

n01440764_1.jpg, n01440764_1.cls and n01440764_1.json are one sample: the key ends at
the first dot of a file's name. Images stay in the tar, and are told by their place.
"""

import json
import tarfile
from typing import NamedTuple

from imagepiece_jax.errors import InputError

IMAGES = ("jpg", "jpeg", "png", "webp")
LABELS = ("cls", "json")
EXTENSIONS = ", ".join(f".{extension}" for extension in IMAGES)
FETCH = "fetch this file again"


class Sample(NamedTuple):
    """An image of a tar: `size` bytes from byte `start` on."""

    key: str
    file_name: str  # that .json has, else the key
    label: int
    start: int
    size: int


def read_samples(path):
    """The samples of a tar, in its order.

    The label is the number in .cls, or the "label" of .json; where a sample has both
    they must be equal. Other files of a sample are not read.

    Raises InputError for a tar that is damaged or compressed, and for a sample without
    an image or a label, or with two; OSError.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            samples = _files_by_key(path, tar)
    except tarfile.TarError as error:
        raise InputError(
            f"{path} is not a complete tar file ({error})"
            f"; {FETCH}, or unpack it where it is compressed"
        ) from error
    if not samples:
        raise InputError(
            f"{path} has no sample"
            f"; allowed: samples of an image ({EXTENSIONS}) and its label, a .cls or "
            ".json"
        )
    return [_sample(path, key, files) for key, files in samples.items()]


def _files_by_key(path, tar):
    """{key: {extension: its TarInfo, or for labels its content}} of an open tar."""
    samples = {}
    for member in tar:
        folder, _, name = member.name.rpartition("/")
        stem, _, extension = name.partition(".")
        extension = extension.lower()
        if not member.isfile() or not stem or extension not in (*IMAGES, *LABELS):
            continue
        key = f"{folder}/{stem}" if folder else stem
        files = samples.setdefault(key, {})
        if extension in files:
            raise _wrong(path, key, f"has two files .{extension}")
        is_label = extension in LABELS
        files[extension] = tar.extractfile(member).read() if is_label else member
    _check_end(tar)
    return samples


def _check_end(tar):
    """A tar ends in a block of zeros: one that was cut between two files has none."""
    tar.fileobj.seek(tar.offset)
    block = tar.fileobj.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("its end is missing")
    if block.strip(b"\0"):
        raise tarfile.ReadError(f"damaged at byte {tar.offset:,}")


def _sample(path, key, files):
    """The Sample of a key; files: as `_files_by_key` has them."""
    images = [extension for extension in IMAGES if extension in files]
    if len(images) != 1:
        found = " and ".join(f".{extension}" for extension in images) or "no image"
        raise _wrong(path, key, f"has {found}", f"one of {EXTENSIONS}")
    labels = {}
    facts = {}
    if "cls" in files:
        labels["cls"] = _number(path, key, files["cls"])
    if "json" in files:
        facts = _facts(path, key, files["json"])
        if "label" in facts:
            labels["json"] = facts["label"]
    if not labels:
        raise _wrong(path, key, "has no label", 'a number in .cls, or "label" of .json')
    if len(set(labels.values())) > 1:
        found = f"has label {labels['cls']} in .cls and {labels['json']} in .json"
        raise _wrong(path, key, found, "one label")
    image = files[images[0]]
    file_name = facts.get("filename")
    if not isinstance(file_name, str):
        file_name = key
    label = next(iter(labels.values()))
    return Sample(key, file_name, label, image.offset_data, image.size)


def _number(path, key, content):
    try:
        return int(content)
    except ValueError as error:
        found = content[:20].decode(errors="backslashreplace")
        raise _wrong(path, key, f"has {found!r} in .cls", "a whole number") from error


def _facts(path, key, content):
    """The content of a .json file, a dict whose label is a whole number."""
    try:
        facts = json.loads(content)
    except ValueError as error:
        raise _wrong(path, key, f"has a .json that is none ({error})") from error
    if not isinstance(facts, dict):
        raise _wrong(path, key, "has no object in .json", "an object")
    if "label" in facts and type(facts["label"]) is not int:
        problem = f"has label {facts['label']!r} in .json"
        raise _wrong(path, key, problem, "a whole number")
    return facts


def _wrong(path, key, problem, allowed=""):
    return InputError(f"{path}: sample {key} {problem}; allowed: {allowed}")
