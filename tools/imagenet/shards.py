"""Which files of a folder are the tars or parquet files of which split.

The Hugging Face hub tells splits by names: imagenet1k-train-0000.tar,
data/validation-00000-of-00014.parquet, train/0.tar.
"""

import glob
import os
import re

from imagepiece_jax.errors import InputError

WORDS = {"train": "train", "validation": "validation", "val": "validation"}
WORDS |= {"valid": "validation", "test": "test"}  # a test split has no labels
WORD = re.compile(rf"(?<![a-z])({'|'.join(WORDS)})(?![a-z])")
SUFFIXES = (".tar", ".parquet")
# ImageNet's own tars, of all images or of a class.
OTHERS = re.compile(r"ILSVRC2012_.*|n\d{8}\.tar")
NUMBERED = re.compile(r"-(\d+)-of-(\d+)\.")


def find_shards(source, patterns, partial):
    """The shards in the folder `source` and in its folders.

    patterns: {split: "" or a pattern of the names of its files, relative to `source`}
    partial: some of a split may be missing
    Returns ({split: [file]}, [file whose split its name does not say]).
    Raises InputError for a pattern without files, a split in two forms, and one of
    which some files are missing.
    """
    root = glob.escape(source)
    splits = {}
    for split, pattern in patterns.items():
        if pattern:
            splits[split] = _matching(source, split, pattern)
    claimed = set().union(*splits.values())
    unknown = []
    for path in sorted([*glob.glob(f"{root}/*"), *glob.glob(f"{root}/*/*")]):
        name = os.path.basename(path)
        if not name.endswith(SUFFIXES) or OTHERS.fullmatch(name) or path in claimed:
            continue
        split = split_by_name(os.path.relpath(path, source))
        if split is None:
            unknown.append(path)
        elif not patterns.get(split):
            splits.setdefault(split, []).append(path)
    splits.pop("test", None)
    for split, paths in splits.items():
        _check_one_form(split, paths)
        if not partial:
            _check_numbers(split, paths)
    return splits, unknown


def holds_shards(folder):
    """Whether shards lie directly in a folder, which then is none of images."""
    if not os.path.isdir(folder):
        return False
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name.endswith(SUFFIXES)]
    return any(not OTHERS.fullmatch(name) for name in names)


def _matching(source, split, pattern):
    """The files of a split by their pattern. Raises InputError where there are none."""
    found = glob.glob(os.path.join(glob.escape(source), pattern), recursive=True)
    if not found:
        raise InputError(f"--{split}_files {pattern} matches no file in {source}")
    for path in found:
        if not path.endswith(SUFFIXES):
            allowed = " or ".join(SUFFIXES)
            raise InputError(
                f"--{split}_files {pattern} matches {path}; allowed: {allowed}"
            )
    return sorted(found)


def split_by_name(path):
    """The split that a file's name says, else that of its folder; None without."""
    folder, name = os.path.split(path.lower())
    for text in (name, folder):
        splits = {WORDS[word] for word in WORD.findall(text)}
        if splits:
            return splits.pop() if len(splits) == 1 else None
    return None


def _check_one_form(split, paths):
    """Raise InputError for a split in two forms, or with two files of a name."""
    first = paths[0]
    names = {}
    for path in paths:
        name = os.path.basename(path)
        other = names.setdefault(name, path)
        if other != path or not path.endswith(os.path.splitext(first)[1]):
            other = first if other == path else other
            raise InputError(
                f"{os.path.dirname(first)} has {split} twice, in {other} and {path}"
                f"; choose by --{split}_files, a pattern of names"
            )


def _check_numbers(split, paths):
    """Names such as train-00000-of-00294.parquet say how many there are."""
    found = {}
    for path in paths:
        match = NUMBERED.search(os.path.basename(path))
        if match:
            found.setdefault(int(match[2]), set()).add(int(match[1]))
    for count, numbers in found.items():
        missing = set(range(count)) - numbers
        if missing:
            place = os.path.dirname(paths[0])
            raise InputError(
                f"{place} has {len(numbers)} of the {count} files of {split}, but not "
                f"number {min(missing):05d}"
                "; allowed: all, or some with --partial"
            )
