"""Mutated weights files: whatever a file holds, reading it fails in a sentence.

python -m tools.fuzz_weights --minutes 60

Small files of PyTorch (archives, TorchScript's and those before version 1.6), NumPy and
safetensors are changed in single bytes, in opcodes of the pickle (cut, doubled,
swapped, with other arguments) and in entries of the archive's directory, and read in a
process that is watched. What would be a fault is printed, its file kept in --out: a
crash, a hang, an error that is no InputError, or a number that is not among the bytes
of the file. The exit status is 1 if there is one.
"""

import contextlib
import io
import pathlib
import pickletools
import random
import struct
import subprocess
import sys
import time
import warnings
import zipfile

import numpy as np
import safetensors.numpy

from imagepiece_jax import cli
from imagepiece_jax.errors import InputError

MINUTES = cli.real("minutes", None, "how long; default: 1")
SEED = cli.integer("seed", 0, "of the mutations")
OUT = cli.text("out", None, "[runs/fuzz_weights] folder of the files that are faults")
CHILD = cli.integer("child", None, "read so many files in this process (internal)")
BATCH = 250  # files that one process reads
SECONDS = 120  # that they may take
# TorchScript is .pt, and the format before PyTorch 1.6 .ckpt.
KINDS = (".pth", ".pth", ".pt", ".pt", ".ckpt", ".ckpt", ".npz", ".safetensors")


def arrays(rng):
    """A few named arrays of numbers that no other bytes of a file are likely to be."""
    return {
        f"blocks.{i}.w": rng.normal(size=shape).astype(dtype)
        for i, (shape, dtype) in enumerate(
            [((3, 4), "f4"), ((5,), "f8"), ((2, 2, 2), "f2"), ((6,), "i8")]
        )
    }


def valid_files(rng):
    """{ending: bytes} of files that can be read."""
    try:
        import torch
    except ModuleNotFoundError as error:
        raise InputError(
            "is not installed",
            field="torch",
            hint="pip install torch",
        ) from error

    tensors = arrays(rng)
    files = {}
    state = {name: torch.from_numpy(value.copy()) for name, value in tensors.items()}
    base = torch.arange(12, dtype=torch.float32)
    state |= {"view": base.view(3, 4).t(), "part": base[5:9]}
    state["parameter"] = torch.nn.Parameter(torch.ones(2, 3))
    buffer = io.BytesIO()
    torch.save({"model": state, "epoch": 3}, buffer)
    files[".pth"] = buffer.getvalue()
    buffer = io.BytesIO()
    torch.save({"model": state}, buffer, _use_new_zipfile_serialization=False)
    files[".ckpt"] = buffer.getvalue()
    layer = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3))
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(layer, torch.ones(1, 2)), buffer)
    files[".pt"] = buffer.getvalue()
    buffer = io.BytesIO()
    np.savez(buffer, **tensors)
    files[".npz"] = buffer.getvalue()
    files[".safetensors"] = safetensors.numpy.save(tensors)
    return files


def mutated(ending, data, draw):
    """The bytes of a file with one to four faults. draw: a random.Random."""
    for _ in range(draw.choice((1, 1, 2, 4))):
        way = draw.choice(("bytes", "opcodes", "directory", "directory"))
        try:
            if way == "opcodes" and ending in (".pth", ".pt"):
                data = _with_part(data, "data.pkl", lambda p: _opcodes(p, draw))
            elif way == "opcodes" and ending == ".ckpt":
                data = _with_pickle(data, lambda p: _opcodes(p, draw))
            elif way == "directory" and ending in (".pth", ".pt", ".npz"):
                data = _directory(data, draw)
            else:
                data = _bytes(data, draw)
        except Exception:  # an earlier fault left nothing to take apart
            data = _bytes(data, draw)
    return data


def _bytes(data, draw):
    """The bytes with one fault: a bit, a byte, a gap, an insertion or a number."""
    data = bytearray(data)
    if not data:
        return bytes(data)
    place = draw.randrange(len(data))
    kind = draw.randrange(5)
    if kind == 0:
        data[place] ^= 1 << draw.randrange(8)
    elif kind == 1:
        data[place] = draw.choice((0, 1, 127, 128, 255, draw.randrange(256)))
    elif kind == 2:
        del data[place : place + draw.choice((1, 2, 8, 100))]
    elif kind == 3:
        data[place:place] = draw.randbytes(draw.choice((1, 2, 8)))
    else:
        size = draw.choice((2, 4, 8))
        number = draw.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**63, draw.getrandbits(64)))
        number %= 256**size
        data[place : place + size] = number.to_bytes(size, "little")
    return bytes(data)


def _with_part(data, name, change):
    """The archive with one member changed, its checksums right."""
    old = zipfile.ZipFile(io.BytesIO(data))
    new = io.BytesIO()
    with zipfile.ZipFile(new, "w") as archive:
        for part in old.infolist():
            content = old.read(part)
            if part.filename.endswith(name):
                content = change(content)
            archive.writestr(part.filename, content)
    return new.getvalue()


def _with_pickle(data, change):
    """A file before PyTorch 1.6 with its fourth pickle, of the content, changed."""
    file = io.BytesIO(data)
    ends = []
    for _ in range(4):
        for _ in pickletools.genops(file):
            pass
        ends.append(file.tell())
    start, end = ends[2:]
    return data[:start] + change(data[start:end]) + data[end:]


def _opcodes(data, draw):
    """A pickle with one opcode cut, doubled, moved, or with another argument."""
    starts = [place for _, _, place in pickletools.genops(data)] + [len(data)]
    parts = [data[a:b] for a, b in zip(starts, starts[1:], strict=False)]
    one = draw.randrange(1, len(parts))
    other = draw.randrange(1, len(parts))
    kind = draw.randrange(6)
    if kind == 0:
        del parts[one]
    elif kind == 1:
        parts.insert(one, parts[other])
    elif kind == 2:
        parts[one], parts[other] = parts[other], parts[one]
    elif kind == 3:
        parts[one] = parts[other]
    elif kind == 4:  # another number
        numbers = [i for i, part in enumerate(parts) if part[:1] in (b"K", b"M", b"J")]
        value = draw.choice((0, 1, -1, 3, 12, 99, 2**31 - 1, -(2**31)))
        parts[draw.choice(numbers)] = b"J" + struct.pack("<i", value)
    else:
        word = draw.choice(
            (b"N", b"]", b"}", b")", b"\x88", b"0", b"1", b"2", b"(", b"a", b"\x85")
            + (b"ctorch\nLongStorage\n", b"ctorch\nByteStorage\n", b"X\1\0\0\x000")
            + (b"cargparse\nNamespace\n)\x81", b"ccollections\nOrderedDict\n)R")
            + (b"ctorch._utils\n_rebuild_tensor_v2\n", b"G" + bytes(8))
            + (b"Q", b"R", b"b")
            + (b"\x8a\x09" + b"\xff" * 8 + b"\x00", b"r\xff\xff\xff\x7f")
        )
        parts.insert(one, word)
    return b"".join(parts)


def _directory(data, draw):
    """An archive whose directory says another size, method, place or name."""
    data = bytearray(data)
    entries = []
    place = data.find(b"PK\1\2")
    while place >= 0:
        entries.append(place)
        place = data.find(b"PK\1\2", place + 4)
    start = draw.choice(entries)
    # Fields of an entry, (first byte, bytes): method, checksum, size in the archive and
    # unpacked (twice as often), lengths of name and extra field, place, and the name.
    fields = (10, 2), (16, 4), (20, 4), (24, 4), (24, 4), (28, 2), (30, 2)
    field, size = draw.choice((*fields, (42, 4), (46, 1)))
    now = int.from_bytes(data[start + field : start + field + size], "little")
    value = draw.choice(
        (0, 1, now + 1, now * 2, now * 50, now - 1, draw.getrandbits(32))
    )
    data[start + field : start + field + size] = (value % 256**size).to_bytes(
        size, "little"
    )
    return bytes(data)


def read(folder):
    """Read every file of a folder; print a line for each, and at once."""
    from imagepiece_jax.pretrained.files import read_normalization, read_state_dict

    warnings.simplefilter("ignore")
    for path in sorted(folder.iterdir()):
        print("reads", path.name, flush=True)
        for reader in (read_state_dict, read_normalization):
            try:
                tensors = reader(path)
            except InputError:
                continue
            except BaseException as error:
                print(
                    "fault", path.name, f"{type(error).__name__}: {error}", flush=True
                )
                continue
            if reader is read_state_dict and (name := foreign(path, tensors)):
                print("fault", path.name, f"{name} is not in the file", flush=True)


def foreign(path, tensors):
    """The first tensor with a number whose bytes are nowhere in the file, or None."""
    contents = [path.read_bytes()]
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with contextlib.suppress(Exception):  # a member that nobody asked for
                    contents.append(archive.read(name))
    for name, array in tensors.items():
        for number in np.ascontiguousarray(array).reshape(-1)[:, None]:
            if not any(number.tobytes() in content for content in contents):
                return name
    return None


def batch(files, folder, seed):
    """Write BATCH mutated files, which replace those of a folder; read all at once.

    A process of its own reads them.

    files: {ending: bytes} to mutate
    Returns a line for each fault: "fault NAME ..", or "crash NAME ..".
    """
    draw = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for number in range(BATCH):
        ending = draw.choice(KINDS)
        data = mutated(ending, files[ending], draw)
        (folder / f"{seed}-{number:03}{ending}").write_bytes(data)
    words = [sys.executable, "-m", "tools.fuzz_weights", "--child=1", f"--out={folder}"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS)
        output = done.stdout
        ended = done.returncode
    except subprocess.TimeoutExpired as error:
        output = (error.stdout or b"").decode()
        ended = "a hang"
    lines = output.splitlines()
    faults = [line for line in lines if line.startswith("fault")]
    if ended:
        faults.append(
            f"crash {lines[-1].split()[1] if lines else '?'} ended by {ended}"
        )
    return faults


def main():
    folder = pathlib.Path(OUT.value or "runs/fuzz_weights")
    if CHILD.value:
        read(folder)
        return
    files = valid_files(np.random.default_rng(SEED.value))
    began = time.monotonic()
    count = 0
    found = 0
    while time.monotonic() - began < 60 * (MINUTES.value or 1.0):
        seed = SEED.value + count
        for line in batch(files, folder / "now", seed):
            found += 1
            print(line, flush=True)
            name = line.split()[1]
            if (folder / "now" / name).is_file():
                (folder / "now" / name).rename(folder / name)
        count += 1
        if count % 20 == 0:
            print(f"{count * BATCH} files, {found} faults", flush=True)
    print(f"{count * BATCH} files, {found} faults")
    sys.exit(found > 0)


if __name__ == "__main__":
    cli.run(main)
