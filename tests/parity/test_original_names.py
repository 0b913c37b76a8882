"""Models by their authors' files, against the addresses in timm's registry."""

import pathlib

import timm

from imagepiece_jax.models import registry
from tests.helpers.parity_record import public_weights


def addresses():
    """{stem of the file: timm's name} of PyTorch's files."""
    found = {}
    for name in public_weights():
        url = timm.get_pretrained_cfg(name.rstrip(".")).url
        if url and url.endswith(".pth"):
            found.setdefault(pathlib.PurePosixPath(url).stem, []).append(name)
    return found


def test_every_original_file_is_the_model_that_timm_takes_it_for():
    found = addresses()
    named = {file: registry.translate_file_name(file) for file in found}
    rest = {file for file, name in named.items() if name == file}
    assert {f: [named[f]] for f in found if f not in rest} == {
        file: names for file, names in found.items() if file not in rest
    }
    # Files of other projects, which were not looked at.
    assert all("miil" in file or file.startswith("jx_") for file in rest)
    assert len(named) - len(rest) == 39
