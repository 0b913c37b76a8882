import pathlib

import timm

from imagepiece_jax.models import registry
from tests.helpers.parity_record import public_weights


def names_of_files():
    """{file's stem: timm's names} of PyTorch files."""
    names = {}
    for name in public_weights():
        url = timm.get_pretrained_cfg(name.rstrip(".")).url
        if url and url.endswith(".pth"):
            names.setdefault(pathlib.PurePosixPath(url).stem, []).append(name)
    return names


def test_every_original_file_has_timms_name():
    expected = names_of_files()
    named = {file: registry.translate_file_name(file) for file in expected}
    rest = {file for file, name in named.items() if name == file}
    assert {f: [named[f]] for f in expected if f not in rest} == {
        file: names for file, names in expected.items() if file not in rest
    }
    # Other projects' files, which nobody has checked.
    assert all("miil" in file or file.startswith("jx_") for file in rest)
    assert len(named) - len(rest) == 39
