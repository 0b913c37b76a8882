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
    named = {file: registry.model_in_file_name(f"{file}.pth") for file in expected}
    rest = {file for file, name in named.items() if name is None}
    for file in expected.keys() - rest:
        assert [named[file]] == expected[file]
    # Other projects' files, which nobody has checked.
    assert all("miil" in file or file.startswith("jx_") for file in rest)
    assert len(named) - len(rest) == 39
