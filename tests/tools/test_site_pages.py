"""Pages of the site: their places, links and pictures."""

import json
import re

import yaml

from tests.runs import ROOT
from tools import site_pages

PLACES = {str(to): source for source, to in site_pages.places().items()}


class Loader(yaml.SafeLoader):
    """Reads variables of the environment as their defaults."""


Loader.add_constructor("!ENV", lambda loader, node: loader.construct_sequence(node)[1])
CONFIG = yaml.load((ROOT / "mkdocs.yml").read_text("utf-8"), Loader)


def named(entries):
    """Paths of a navigation, of any depth."""
    for entry in entries:
        for value in entry.values():
            yield from [value] if isinstance(value, str) else named(value)


def test_every_page_is_in_the_navigation_once():
    pages = [place for place in PLACES if place.endswith(".md")]
    assert sorted(named(CONFIG["nav"])) == sorted(pages)
    assert CONFIG["docs_dir"] == str(site_pages.OUT.relative_to(ROOT))


def test_links_lead_where_the_site_has_the_page():
    readme = ROOT / "README.md"
    tour = ROOT / "docs" / "tour.md"
    text = "[a](docs/models.md#load) ![b](docs/tokens.png) [c](gone.md) [d](#e)"
    wanted = "[a](models.md#load) ![b](tokens.png) [c](gone.md) [d](#e)"
    assert site_pages.linked(text, readme, None) == wanted
    text = "[a](../README.md) [b](../train.py) [c](../configs) [d](https://x.org)"
    wanted = "[a](index.md) b c [d](https://x.org)"
    assert site_pages.linked(text, tour, None) == wanted
    wanted = "[a](index.md) [b](U/blob/HEAD/train.py) [c](U/blob/HEAD/configs)"
    assert site_pages.linked(text, tour, "U") == f"{wanted} [d](https://x.org)"
    text = "[![Open](https://x.org/badge.svg)](https://x.org/a)"
    assert site_pages.linked(text, tour, "U") == "[Open](https://x.org/a)"
    deep = ROOT / "docs" / "tables" / "retokenization" / "README.md"
    text = "[a](../../comparison.md) [b](../../../experiments/README.md)"
    wanted = "[a](../../comparison.md) [b](../../experiments.md)"
    assert site_pages.linked(text, deep, None) == wanted


def test_pages_are_written_with_links_that_lead_to_files(tmp_path):
    out = tmp_path / "pages"
    (out / "left_over").mkdir(parents=True)
    site_pages.write(out)
    files = {str(path.relative_to(out)) for path in out.rglob("*.*")}
    assert files >= set(PLACES)
    assert not (out / "left_over").exists()
    for page in out.rglob("*.md"):
        text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)
        for path in re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", text):
            assert (page.parent / path).is_file(), (page, path)


def test_the_notebook_shows_what_its_cells_printed_and_drew(tmp_path):
    notebook = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text("utf-8"))
    page = site_pages.notebook_page(notebook, tmp_path)
    assert "```text\ntrained weights\n```" in page
    outputs = []
    for cell in notebook["cells"]:
        outputs += cell.get("outputs", [])
    hidden = [o["text"][0].strip() for o in outputs if o.get("name") == "stderr"]
    assert hidden
    assert not any(line in page for line in hidden)
    pictures = [file.name for file in tmp_path.iterdir()]
    assert len(pictures) == 2
    assert all(f"({name})" in page for name in pictures)
