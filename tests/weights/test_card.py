"""What a model card says of the weights that a model was made from."""

import json

import pytest
import yaml

import imagepiece_jax
from tests.models import recoveries, tiny

FIELDS = {"name": "vit_mini", "num_heads": tiny.HEADS}


def card(folder):
    """(YAML header, text) of the card in a folder."""
    _, header, text = (folder / "README.md").read_text("utf-8").split("---\n", 2)
    return yaml.safe_load(header), text


def saved(folder, path, **options):
    """The card of the weights at a path, saved to a folder."""
    vit = imagepiece_jax.load(path, **options)
    return card(imagepiece_jax.save(folder, vit))


@pytest.fixture
def weights(tmp_path):
    return tiny.write(tmp_path / "mine.npz", tiny.pretrained().variables)


def test_a_file_is_named_whose_license_nobody_knows(tmp_path, weights):
    header, text = saved(tmp_path / "m", weights, reduction=tiny.EVIT, **FIELDS)
    assert not {"license", "base_model"} & header.keys()
    assert "| made from | `mine.npz` |" in text
    assert "| license | that of the weights" in text
    assert "timm.create_model" in text


def test_a_model_of_ones_own_has_no_origin(tmp_path):
    _, text = card(imagepiece_jax.save(tmp_path / "m", tiny.pretrained()))
    assert "made from" not in text
    assert "license" not in text


HEADERS = {
    "license: apache-2.0\ntags:\n- vision": {"license": "apache-2.0"},
    "license: other\nlicense_name: mine\nlicense_link: https://example.org/x": {
        "license": "other",
        "license_name": "mine",
        "license_link": "https://example.org/x",
    },
    "license: [mit, apache-2.0]\r": {"license": ["mit", "apache-2.0"]},
    "license:\n- mit": {},
    "license: >-\n  mit": {},
    "tags:\n- license": {},
}


@pytest.mark.parametrize("written", HEADERS)
def test_the_license_is_that_of_the_folders_card(tmp_path, written):
    """As a YAML reader has it; it stays through a second folder."""
    folder = imagepiece_jax.save(tmp_path / "public", tiny.pretrained())
    (folder / "README.md").write_text(f"---\n{written}\n---\n# public\n", newline="")
    for name in ("first", "second"):
        header, text = saved(tmp_path / name, folder)
        found = {k: v for k, v in header.items() if k.startswith("license")}
        assert found == HEADERS[written]
        folder = tmp_path / name
    assert "| made from | `first` |" in text


@pytest.mark.parametrize(
    "license, wanted",
    [
        ("mit", {"license": "mit"}),
        ("dinov3-license", {"license": "other", "license_name": "dinov3-license"}),
        (
            "cc: by #1\nfoo: bar",
            {"license": "other", "license_name": "cc: by #1\nfoo: bar"},
        ),
        (None, {}),
    ],
)
def test_the_license_is_that_of_timms_config(tmp_path, license, wanted):
    folder = imagepiece_jax.save(tmp_path / "public", tiny.pretrained())
    (folder / "README.md").unlink()
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["pretrained_cfg"]["license"] = license
    file.write_text(json.dumps(config))
    header, text = saved(tmp_path / "m", folder)
    assert {k: v for k, v in header.items() if k.startswith("license")} == wanted
    terms = "that of the weights"
    if wanted:
        *_, terms = wanted.values()
    if "\n" in terms:
        terms = json.dumps(terms)
    assert f"| license | {terms}" in text


def test_weights_of_the_hub_are_the_base_model(tmp_path):
    """In the layout of its cache."""
    vit = tiny.pretrained()
    cache = tmp_path / "models--some--vit" / "snapshots"
    cache.mkdir(parents=True)
    folder = imagepiece_jax.save(cache / "abc", vit)
    header, text = saved(tmp_path / "m", folder)
    assert header["base_model"] == "some/vit"
    assert "| made from | `some/vit` |" in text


def test_the_card_of_recovered_weights(tmp_path):
    """A table of costs, and timm's line; of a second folder, too."""
    vit = recoveries.recovered()
    first = imagepiece_jax.save(tmp_path / "half", vit)
    again = imagepiece_jax.load(first)
    for folder in (first, imagepiece_jax.save(tmp_path / "again", again)):
        header, text = card(folder)
        assert header["library_name"] == "imagepiece_jax"
        assert "| reduction | tome r=3 (recovered) |" in text
        row = "| tome r=3, 3 blocks, 20x20 pixels | KL | 0.2500 | 0.1250 |"
        assert row in text
        assert "| made from | `public.pth` |" in text
        assert f'load("{folder.name}")' in text
        assert "timm.create_model" in text
        assert "no better" not in text
    dense = again.with_reduction(None)
    _, text = card(imagepiece_jax.save(tmp_path / "dense", dense))
    assert "| reduction | dense |" in text
    assert row in text
    same = recoveries.recovered(changed=False)
    _, text = card(imagepiece_jax.save(tmp_path / "same", same))
    assert "| KL | 0.2500 | no better |" in text
    assert "One that got no better has the dense model's numbers." in text
