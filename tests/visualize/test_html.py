"""The page: self-contained, valid, and described in words."""

import dataclasses
import html.parser
import pathlib
import re

import numpy as np
import pytest

from imagepiece_jax.errors import RunError
from imagepiece_jax.visualize import figure
from imagepiece_jax.visualize import html as html_page
from imagepiece_jax.visualize.html import page
from tests.models import tiny
from tests.visualize import traces

VOID = {"meta", "input", "img", "br", "link"}
STYLE = pathlib.Path(html_page.__file__).with_name("page.css").read_text()
NAMES = ["one.jpg", '<b>"two".jpg']


class Parsed(html.parser.HTMLParser):
    """All elements as (tag, attributes); fails where tags do not nest."""

    def __init__(self, text):
        super().__init__()
        self.elements = []
        self.open = []
        self.text = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attrs for found, attrs in self.elements if found == tag]


@pytest.fixture(scope="module")
def text():
    return page(traces.images(), NAMES, *traces.methods(), "weights.npz")


def test_the_likeliest_class_has_its_name():
    """traces: class 3 of the first image, 4 of the second."""
    names = ["a", "b", "c", "<cat>", None]
    text = page(traces.images(), NAMES, *traces.methods(), "w.npz", names)
    assert text.count("&lt;cat&gt;, 25 % sure") == 3
    assert text.count("class 4, 50 % sure") == 3
    assert "<cat>" not in text


@pytest.mark.parametrize(
    "problem_type, options",
    [
        ("regression", {}),
        ("single_label_classification", {"num_classes": 0}),
        ("single_label_classification", {"num_classes": 0, "arch": {"pool": "none"}}),
    ],
)
def test_outputs_that_are_no_classes_have_no_likeliest(tmp_path, problem_type, options):
    vit = tiny.pretrained(depth=1, **options)
    vit = dataclasses.replace(vit, problem_type=problem_type)
    images = np.zeros((1, 20, 20, 3), np.uint8)
    list(html_page.write_folder(tmp_path, [vit], images, ["a"], "w.npz"))
    assert "% sure" not in (tmp_path / "index.html").read_text()


def test_an_old_page_stays_where_a_new_one_cannot_be_written(tmp_path, monkeypatch):
    """On a full disk: half of it is written."""
    write_bytes = pathlib.Path.write_bytes

    def full_disk(path, data):
        if data.startswith(b"<!doctype"):
            write_bytes(path, data[:9])
            raise OSError("no space left on device")
        write_bytes(path, data)

    (tmp_path / "index.html").write_text("of an earlier run")
    monkeypatch.setattr(pathlib.Path, "write_bytes", full_disk)
    vit = tiny.pretrained(depth=1)
    images = np.zeros((1, 20, 20, 3), np.uint8)
    with pytest.raises(RunError, match=r"index.html .*no space left"):
        list(html_page.write_folder(tmp_path, [vit], images, ["a"], "w.npz"))
    assert (tmp_path / "index.html").read_text() == "of an earlier run"
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"index.html", "figures", "provenance.json", "provenance.npz"}


@pytest.fixture(scope="module")
def parsed(text):
    return Parsed(text)


def test_the_page_is_self_contained(text, parsed):
    ids = {attrs["id"] for _, attrs in parsed.elements if "id" in attrs}
    for _, attrs in parsed.elements:
        if "src" in attrs:
            assert attrs["src"].startswith("data:image/")
        if "href" in attrs:
            assert attrs["href"].removeprefix("#") in ids
        assert not any(name.startswith("on") for name in attrs)
    assert not parsed.all("script")
    assert not parsed.all("link")
    assert re.findall(r"url\((.{11})", text) == ["data:image/"] * len(NAMES)
    assert "@import" not in text and "http" not in text


def test_every_picture_is_described(parsed):
    alts = [attrs["alt"] for attrs in parsed.all("img")]
    assert all(alts)
    # For each image: itself; the first method's groups, attention and sizes at its end,
    # 2 + 3 + 2 of its stages; a sheet and 2 maps of the second; attention of the third.
    assert len(alts) == 2 * (1 + 3 + 7 + 3 + 1)
    assert "before block 3, 4 tokens: imagepiece, one.jpg" in alts
    assert "sizes, block 1, 1 to 2 patches: imagepiece, one.jpg" in alts
    assert f"weights of 2 learned tokens, a map each: {LEARNER}, one.jpg" in alts
    assert "attention, block 3, largest 30.0 %: dense, one.jpg" in alts


LEARNER = "learner (untrained selectors)"


def test_names_are_escaped_and_controls_labeled(parsed):
    assert len(parsed.all("b")) == len(parsed.all("figcaption"))
    shown = "".join(parsed.text)
    assert NAMES[1] in shown
    assert "class 4, 50 % sure" in shown
    inputs = parsed.all("input")
    assert [attrs["id"] for attrs in inputs] == [
        f"show-{kind}" for kind in figure.KINDS
    ]
    assert ["checked" in attrs for attrs in inputs] == [True, False, False]
    assert len(parsed.all("label")) == 3
    assert len(parsed.all("legend")) == 1
    ((language),) = parsed.all("html")
    assert language == {"lang": "en"}


def luminance(color):
    """Relative luminance by WCAG 2."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("column", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("front", ["text", "quiet", "accent"])
def test_text_has_enough_contrast(front, column):
    for back in ("ground", "raised"):
        pair = [re.findall(rf"--{k}: (#\w+);", STYLE)[column] for k in (front, back)]
        low, high = sorted(map(luminance, pair))
        assert (high + 0.05) / (low + 0.05) >= 4.5
