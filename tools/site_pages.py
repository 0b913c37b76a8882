"""build/pages, what the site is made of: python -m tools.site_pages; or make docs

Pages are the repository's Markdown as it stands, in one folder. Links between pages
follow them there; links to other files lead to the repository at the address that
REPOSITORY_URL names, and without one only their text is left. Pictures of other sites
(badges) are left out likewise: the site loads nothing from elsewhere. The notebook
becomes a page, with the pictures that are stored in it.
"""

import base64
import json
import os
import pathlib
import re
import shutil

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "build" / "pages"
# Pages outside docs, and where the site has them.
BESIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "PERFORMANCE.md": "performance.md",
    "CHANGELOG.md": "changelog.md",
    "experiments/README.md": "experiments.md",
}
ELSEWHERE = re.compile(r"!\[([^\[\]]*)\]\(https?:[^)]*\)")
LINK = re.compile(r"\[([^\[\]]*)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def places() -> dict[pathlib.Path, pathlib.PurePosixPath]:
    """Where each file of the site comes from, and its path there."""
    found = {ROOT / name: pathlib.PurePosixPath(to) for name, to in BESIDE.items()}
    docs = ROOT / "docs"
    for file in sorted(docs.rglob("*.*")):
        name = file.relative_to(docs)
        found[file] = pathlib.PurePosixPath(
            name.with_suffix(".md") if file.suffix == ".ipynb" else name
        )
    return found


def linked(text: str, source: pathlib.Path, repository: str | None) -> str:
    """The Markdown of the file `source`, its links as the site needs them.

    A link to a file that does not exist stays, for the strict build to refuse it.
    """
    sites = places()

    def link(match: re.Match) -> str:
        label = match[1]
        path = match[2]
        anchor = match[3] or ""
        target = (source.parent / path).resolve()
        if target in sites:
            path = os.path.relpath(sites[target], sites[source].parent)
        elif target.is_relative_to(ROOT) and target.exists():
            if repository is None:
                return label
            path = f"{repository}/blob/HEAD/{target.relative_to(ROOT).as_posix()}"
        return f"[{label}]({path}{anchor})"

    return LINK.sub(link, ELSEWHERE.sub(r"\1", text))


def notebook_page(notebook: dict, folder: pathlib.Path) -> str:
    """The Markdown of a notebook; its pictures are written to `folder`."""
    parts = []
    for number, cell in enumerate(notebook["cells"]):
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] != "code" else f"```python\n{text}\n```")
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":  # progress
                continue
            data = output.get("data", {})
            if "image/png" in data:
                name = f"quickstart_{number}_{len(parts)}.png"
                (folder / name).write_bytes(base64.b64decode(data["image/png"]))
                parts.append(f"![What the code above shows]({name})")
            elif said := "".join(output.get("text", data.get("text/plain", []))):
                parts.append(f"```text\n{said.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def write(out: pathlib.Path = OUT, repository: str | None = None) -> None:
    """Make the folder `out` anew."""
    shutil.rmtree(out, ignore_errors=True)
    for source, place in places().items():
        target = out / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if place.suffix != ".md":
            shutil.copy(source, target)
            continue
        text = source.read_text("utf-8")
        if source.suffix == ".ipynb":
            text = notebook_page(json.loads(text), target.parent)
        target.write_text(linked(text, source, repository), "utf-8")


if __name__ == "__main__":
    write(repository=os.environ.get("REPOSITORY_URL") or None)
    print(OUT)
