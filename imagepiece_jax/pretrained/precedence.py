"""Which source decides a field of a model: the first in its row that says it.

docs/models.md prints `table`.
"""

from collections.abc import Mapping

from imagepiece_jax.models.config import ModelConfig

# Sources, as the table calls them.
RUN = "the run's config"
CONFIG_FILES = "its config files"
CALLER = "your arguments"
FLAGS = "`--mean` and `--std`"
TYPED = "`--config.FIELD=VALUE`, or all of `--config`"
WEIGHTS = "the weights, by the rows above"
BASE = "`configs/base.py`"
IN_FILE = "mean and std in the file"
PUBLIC_NAME = "that name"
LAYOUT = "the layout"
FILE_NAME = "the file's name"
TRAINING = "in training, its config"

ORDER = {
    "a run": (RUN,),
    "a folder": (CONFIG_FILES, CALLER, LAYOUT, TRAINING),
    "a file": (CALLER, IN_FILE, LAYOUT, FILE_NAME, TRAINING),
    "a file, and `name=..` of a public model": (
        CALLER,
        IN_FILE,
        PUBLIC_NAME,
        LAYOUT,
        TRAINING,
    ),
    "in a command": (FLAGS, TYPED, WEIGHTS, BASE),
}


def merged(row: str, said: Mapping[str, ModelConfig]) -> ModelConfig:
    """Each field from the first source of a row of ORDER that says it.

    said: what sources of that row say; others say nothing
    """
    configs = [said[source] for source in ORDER[row] if source in said]
    return ModelConfig().over(*configs)


def table() -> str:
    """ORDER in Markdown."""
    length = max(map(len, ORDER.values()))
    numbers = [str(place) for place in range(1, length + 1)]
    lines = [["", *numbers], ["---"] * (length + 1)]
    for row, sources in ORDER.items():
        lines.append([row, *sources, *[""] * (length - len(sources))])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
