"""Sphinx's settings for `make docs`: all pages of the repository, and docstrings."""

import os
import re

from sphinx.pycode import parser

CODE_URL = os.environ.get("CODE_URL")  # where links to files lead; None: downloads
NAVIGATION = {
    "Use": "models weight_files recovery comparison inference export phones features "
    "search photo_programs questions quickstart",
    "Methods": "methods imagepiece reducers",
    "Train": "training own_loop",
    "Code": "design tour api ../CONTRIBUTING ../CHANGELOG",
    "Evidence": "results/* results/*/* ../PERFORMANCE ../experiments/README",
}
EXPLAINED = re.compile(r"^( *)(?:(\w+(?:(?:, | to )\w+)*): |(Returns|Raises) )", re.M)
parser.comment_re = re.compile(r"^\s*#:? ?(.*)\r?\n?$")  # fields have plain comments

project = html_title = "imagepiece_jax"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
root_doc = "README"
include_patterns = ["*.md", "docs/**", "experiments/README.md"]
exclude_patterns = [".*", "build"]
html_theme = "furo"
highlight_language = "text"
myst_heading_anchors = 4  # as on code hosts
nb_execution_mode = "off"
default_role = "py:obj"  # single backticks
autodoc_member_order = "groupwise"
maximum_signature_line_length = 60
toc_object_entries_show_parents = "hide"


def prepare_page(app, name, source):
    def lead(link):
        path = os.path.normpath(os.path.join(name, "..", link[1]))
        is_page = re.search(r"\.(md|ipynb|png|svg)$", path)
        is_code = CODE_URL and not is_page and (app.srcdir / path).is_file()
        return f"({CODE_URL}/{path})" if is_code else link[0]

    source[0] = re.sub(r"(?<=\])\(([^)#:]+)\)", lead, source[0])
    for caption, pages in NAVIGATION.items() if name == root_doc else ():
        source[0] += f"\n```{{toctree}}\n:hidden:\n:glob:\n:caption: {caption}\n\n"
        source[0] += "".join(f"docs/{page}\n" for page in pages.split()) + "```\n"


def prepare_signature(app, what, name, obj, options, signature, returned):
    return signature and signature.replace("<factory>", "..."), returned  # it parses


def prepare_docstring(app, what, name, obj, options, lines):
    text = re.sub(r"\n\n(?=    )", "\n\n.. code-block:: python\n\n", "\n".join(lines))
    lines[:] = EXPLAINED.sub(r"\n\1**\2\3**\n\1    ", text).split("\n")


def setup(app):
    app.connect("source-read", prepare_page)
    app.connect("autodoc-process-signature", prepare_signature)
    app.connect("autodoc-process-docstring", prepare_docstring)
