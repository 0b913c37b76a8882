"""Features of a folder of photographs, as files of vectors that NumPy and faiss open.

python -m imagepiece_jax features --weights W --reduction 0.5 --data PATH --out FOLDER

FOLDER gets pooled.npy with a row for each line of paths.txt, and info.json; --patches
and --logits write files of their own. Other paths may stand behind the flags.
An image that cannot be read is named, in damaged.csv, too, and its row is NaN. The same
command goes on where a process was killed, and all GPUs of the machine take part. With
a reduction the first 256 photographs run dense, too, and the last line has the cosines.
"""

import pathlib

from imagepiece_jax import cli
from imagepiece_jax.commands import _weights
from imagepiece_jax.errors import InputError, flags_of, renamed

WEIGHTS = _weights.weights(draws=False)
IMAGES = "a folder, an image, a .csv with a column filename, or a .txt of paths"
DATA = cli.text("data", None, IMAGES)
OUT = cli.text("out", None, "the folder to write, or to complete")
PATCHES = cli.switch("patches", False, "write a feature for every patch, too")
LOGITS = cli.switch(
    "logits", False, "write the head's outputs, too: CLIP's vectors beside its texts'"
)
STORAGE = cli.choice(
    "storage", "float16", ["float16", "float32"], "type of the numbers in the files"
)
BATCH = cli.integer("batch", None, "photographs a device at a time; default: 64", 1)
THREADS = cli.integer(
    "threads", None, "that decode; default: one a core, at most 16", 1
)


def main(words):
    if DATA.value:
        words = [DATA.value, *words]
    if not words:
        raise InputError("--data", problem="is missing", hint=f"give {IMAGES}")
    out = pathlib.Path(cli.required(OUT))
    # These import JAX, which --help and a mistyped flag need not wait for.
    from imagepiece_jax.common.files import check_folder
    from imagepiece_jax.data import pictures
    from imagepiece_jax.inference import feature_files, feature_folder

    flags = flags_of("weights", "reduction", "patches", "logits", "dtype")
    flags |= flags_of("storage")
    flags |= {"images": "--data", "folder": "--out", "preprocessing": "the crop"}
    with renamed(flags):
        pictures.check_there(words)
        check_folder("--out", out)
        feature_folder.check_folder(out)
        written = feature_files.write_features(
            WEIGHTS(),
            pictures.listed(words),
            out,
            patches=PATCHES.value,
            logits=LOGITS.value,
            storage=STORAGE.value,
            batch_size=BATCH.value or 64,
            threads=THREADS.value,
        )
    for name, shape in written.shapes.items():
        size = " x ".join([f"{side}" for side in shape])
        print(f"{out / name}.npy: {size} {STORAGE.value}")
    if written.damaged:
        table = out / feature_folder.DAMAGED
        print(f"{written.damaged} damaged, whose rows are NaN: {table}")
    if written.compared:
        print(written.compared)


if __name__ == "__main__":
    cli.run(main)
