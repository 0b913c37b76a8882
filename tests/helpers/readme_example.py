"""README's first example, and the public functions, without the extra `train`.

    python -m tests.helpers.readme_example

`make plain` runs it after `pip install .` alone; elsewhere --hide makes the rest of an
installation unimportable. It prints its results as JSON.
"""

import contextlib
import functools
import io
import json
import pathlib
import re
import sys
import tempfile
from unittest import mock

import imagepiece_jax
from imagepiece_jax.common import extras
from imagepiece_jax.models import registry
from imagepiece_jax.models.create import create_model
from tests.helpers import named_models, tiny_vit
from tests.helpers.picture_files import noise, write_images

README = pathlib.Path(__file__).resolve().parent.parent.parent / "README.md"
FILE = "deit_tiny_patch16_224"  # the stem of the file in README's first example
# Packages of a plain installation import absl and google.
HIDDEN = set().union(*extras.EXTRA_MODULES.values()) - {"absl", "google"}


def run_first_example():
    """Return README's vit after one step of recovery.

    Weights and photographs are random, and the model has two blocks of twelve.
    """
    (photograph,) = write_images(pathlib.Path(), noise(1, 200, 300))
    photograph.rename("cat.jpg")
    write_images(pathlib.Path("photos"), noise(24, 64, 64))
    registry.public_models()[FILE]["depth"] = 2
    model = create_model(named_models.config(FILE, image_size=224))
    tiny_vit.write(f"{FILE}.npz", tiny_vit.variables(model))
    blocks = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    code, changed = re.subn(rf"{FILE}-\w+\.pth", f"{FILE}.npz", blocks[0])
    assert changed
    namespace = {}
    quick = functools.partial(imagepiece_jax.recover, steps=1, batch_size=8)
    quickly = mock.patch.object(imagepiece_jax, "recover", quick)
    with quickly, contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, README.name, "exec"), namespace)
    assert printed.getvalue().count("Prediction(label=") == 5
    return namespace["vit"]


def main():
    """Run the example and the other public functions in an empty folder."""
    for name in imagepiece_jax.__all__:
        getattr(imagepiece_jax, name)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        vit = run_first_example()
        saved = imagepiece_jax.load("deit_tiny_half")
        assert saved.recovery.variants == vit.recovery.variants
    program = imagepiece_jax.optimize(vit, batch_size=2, pixels=True)
    pixels = noise(2, 224, 224)
    imagepiece_jax.features(vit, pixels)
    result = {"reduction": str(vit.reduction), "logits": program(pixels).shape}
    print(json.dumps(result | {"steps": vit.recovery.variants[0].steps}))


if __name__ == "__main__":
    if sys.argv[1:] == ["--hide"]:
        assert not HIDDEN & {*sys.modules}
        sys.modules |= dict.fromkeys(HIDDEN)  # importing them raises an ImportError
    main()
