"""README's first example, and the public functions, without the extra `train`.

    python -m tests.helpers.readme_example

`make plain` runs it after `pip install .` alone; elsewhere `hide` makes the rest of an
installation unimportable. It prints its results as JSON.
"""

import contextlib
import io
import json
import logging
import pathlib
import re
import sys
import tempfile
from unittest import mock

import numpy as np
from PIL import Image

import imagepiece_jax
from imagepiece_jax.common import extras
from imagepiece_jax.models import registry
from imagepiece_jax.models.create import create_model
from imagepiece_jax.models.variables import variable_shapes
from tests.helpers import named_models, tiny_vit

README = pathlib.Path(__file__).resolve().parent.parent.parent / "README.md"
FILE = "deit_tiny_patch16_224"  # the stem of the file in README's first example
# Packages of a plain installation import absl and google.
HIDDEN = set().union(*extras.EXTRA_MODULES.values()) - {"absl", "google"}


class Hidden:
    """A finder that refuses the modules that a plain installation lacks."""

    def find_spec(name, path, target=None):
        if name in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def hide():
    assert not HIDDEN & {*sys.modules}
    sys.meta_path.insert(0, Hidden)


def main():
    """Run the example and the functions in an empty folder."""
    folder = tempfile.TemporaryDirectory()
    with folder, contextlib.chdir(folder.name):
        namespace = run_first_example()
        results = run_public_functions()
        print("asked", file=sys.stderr)
        logging.basicConfig(level=logging.INFO)
        imagepiece_jax.load("saved", 0.8)
    print(json.dumps({"reduction": str(namespace["vit"].reduction), **results}))


def run_first_example():
    """The names defined by README's first example.

    Weights and photographs are random, and the model has two blocks of twelve.
    """
    for name in ("cat.jpg", "dog.jpg"):
        Image.new("RGB", (300, 200), "gray").save(name)
    registry.public_models()[FILE]["depth"] = 2
    model = create_model(named_models.config(FILE, image_size=224))
    tiny_vit.write(f"{FILE}.npz", tiny_vit.fill(variable_shapes(model)))
    blocks = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    code = re.sub(rf"{FILE}-\w+\.pth", f"{FILE}.npz", blocks[0])
    assert f'"{FILE}.npz"' in code
    namespace = {}
    # Recovery takes long at this size; `run_public_functions` recovers a small model.
    no_recovery = mock.patch.object(imagepiece_jax, "recover", lambda vit, images: vit)
    with no_recovery, contextlib.redirect_stdout(io.StringIO()):
        exec(compile(code, README.name, "exec"), namespace)
    return namespace


def run_public_functions():
    """Call every public function with a tiny model. Returns shapes and steps."""
    for name in imagepiece_jax.__all__:
        getattr(imagepiece_jax, name)
    vit = tiny_vit.pretrained("tome:r=3", depth=2)
    imagepiece_jax.save(vit, "saved")
    vit = imagepiece_jax.load("saved")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, tiny_vit.SIDE, tiny_vit.SIDE, 3), np.uint8)
    program = imagepiece_jax.optimize(vit, batch_size=2, pixels=True)
    better = imagepiece_jax.recover(vit, pixels, steps=1, batch_size=8)
    imagepiece_jax.features(vit, pixels[:2])
    imagepiece_jax.Predictor(vit)(pixels[:2])
    return {
        "logits": np.asarray(program(pixels[:2])).shape,
        "steps": better.recovery.variants[0].steps,
    }


if __name__ == "__main__":
    if sys.argv[1:] == ["--hide"]:
        hide()
    main()
