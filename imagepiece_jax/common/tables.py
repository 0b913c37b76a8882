"""Markdown tables."""


def markdown(head, rows):
    """Lines of a Markdown table; cells are text, None is blank."""
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(map(_cell, line))} |" for line in lines]


def _cell(value):
    """Text that neither ends its cell nor is read as HTML: it may be a file's name."""
    text = "" if value is None else str(value)
    return " ".join(text.replace("|", "\\|").replace("<", "\\<").splitlines())
