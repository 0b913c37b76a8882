"""What forms of a program change: tanh GELU, sizes in a direction, fast reductions.

python -m experiments forms --weights FILE --data csv:FILE [--limit 200] [--types ..]

Programs of `optimize` answer the same photographs, and two of them are compared image
by image: by the KL divergence and the first class, or by the cosine of pooled vectors
where there are no classes. CPUs compute no attention in float16: with --types float16
it is computed in float32, of rounded operands. Comparisons are lines of
docs/tables/forms/points.jsonl, of which README.md there has the tables.
"""

import contextlib
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import imagepiece_jax
from experiments import results, study
from imagepiece_jax import cli
from imagepiece_jax.common import xla_options
from imagepiece_jax.common.files import replace_file
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.evaluate import statistics
from imagepiece_jax.evaluate.cache import (
    FILE,
    ResultCache,
    decode_bits,
    encode_bits,
    read_lines,
)
from imagepiece_jax.evaluate.statistics import Estimate
from imagepiece_jax.inference import size_direction
from imagepiece_jax.inference.optimize import forward, optimize
from imagepiece_jax.models import attention

FOLDER = results.ROOT / "docs" / "tables" / "forms"
PAGE = FOLDER / "README.md"
WEIGHTS = cli.weights()
DATA = cli.data()
LIMIT = cli.limit()
TYPES = cli.listed("types", ["float32", "bfloat16"], "of layers")

DENSE = "dense"
RECOMMENDED = "recommended"
THREE_BLOCKS = "most attended in 3 blocks"
DIFFRATE = "DiffRate"
TOME = "ToMe"
REDUCTIONS = {
    DENSE: None,
    RECOMMENDED: 0.5,
    THREE_BLOCKS: {"name": "diffrate", "macs": 0.5, "counts": "stages-3-6-9"},
    DIFFRATE: {"name": "diffrate", "macs": 0.5},
    TOME: {"name": "tome", "macs": 0.5},
}
PLAIN = "plain"
EXACT = {"gelu": "exact", "sizes": "bias", "reductions": "exact"}  # the plain form
# {form: the option in which it differs from the plain one}
FORMS = {
    PLAIN: {},
    "tanh": {"gelu": "tanh"},
    "direction": {"sizes": "direction"},
    "fast": {"reductions": "fast"},
}
# (form, its reductions, its types). Sizes of a dense model are 1, and have a direction
# only to show what a model loses with it.
MEASURED = (
    (PLAIN, tuple(REDUCTIONS), ("float32", "bfloat16", "float16")),
    ("tanh", (DENSE, RECOMMENDED), ("float32", "bfloat16", "float16")),
    ("direction", (DENSE,), ("float32",)),
    ("direction", (THREE_BLOCKS, TOME), ("float32", "bfloat16")),
    ("fast", (THREE_BLOCKS, DIFFRATE), ("bfloat16",)),
)
DIGITS = 4  # of a distance
MARGIN = 0.01  # of KL, within which a form is as near to the dense model as the plain


class Program(NamedTuple):
    """A program of a model."""

    reduction: str  # one of REDUCTIONS
    dtype: str  # of layers
    form: str  # one of FORMS

    @property
    def beside(self) -> "Program":
        """The plain program of the same type, or of float32 if it is that itself."""
        dtype = "float32" if self.form == PLAIN else self.dtype
        return Program(self.reduction, dtype, PLAIN)

    @property
    def near(self) -> "Program":
        """The program that its answers are compared with, beside those of the dense.

        It is `beside`, but in float32 for tanh: what the type changes is its measure.
        """
        dtype = "float32" if self.form == "tanh" else self.beside.dtype
        return Program(self.reduction, dtype, PLAIN)


ORIGIN = Program(DENSE, "float32", PLAIN)


def comparisons(types: Sequence[str]) -> Iterator[tuple[Program, Program]]:
    """The programs of these types, each with ORIGIN and with its `near` one."""
    for form, reductions, own_types in MEASURED:
        for reduction, dtype in itertools.product(reductions, own_types):
            if dtype not in types:
                continue
            program = Program(reduction, dtype, form)
            for base in dict.fromkeys((ORIGIN, program.near)):
                if base != program:
                    yield program, base


def measure(
    name: str,
    vit,
    images: Sequence[np.ndarray],
    cache: ResultCache,
    types: Sequence[str],
):
    """Compare the programs of a model, and keep what differs.

    name: of the model, for the tables
    images: batches uint8 of the model's size, all of study.BATCH images but the last
    types: of layers
    """

    @functools.cache
    def answers(program):
        """Logits, or pooled vectors of a model without classes. [images, ..]."""
        compiled = compile_program(vit, program)
        return np.concatenate([np.asarray(compiled(batch)) for batch in images])

    def compare(program, base):
        """What differs from the base, as JSON values."""
        expected = answers(base)
        found = answers(program)
        if not vit.model.num_classes:
            return {"distance": rounded(distance(expected, found))}
        same = expected.argmax(axis=1) == found.argmax(axis=1)
        kl = study.divergence(expected, found)
        return {"distance": rounded(kl), "same": encode_bits(same)}

    setting = {"model": name, "weights": vit.digest, "images": sum(map(len, images))}
    for program, base in comparisons(types):
        pair = {"program": program, "base": base}
        what = f"{', '.join(program)} from {', '.join(base)}"
        cache.result(setting | pair, functools.partial(compare, program, base), what)


def compile_program(vit, program: Program):
    """A function of uint8 images that returns what the program of a model does."""
    if program.reduction == DENSE and program.form == "direction":
        model = vit.model_with(None)
        found = size_direction.directions(vit)
        every = range(model.depth)
        model, variables = size_direction.folded(model, vit.variables, found, every)
        return functools.partial(jax.jit(forward(model)), variables)
    reduced = vit.with_reduction(REDUCTIONS[program.reduction])
    options = {"dtype": program.dtype, "pixels": True}
    options |= EXACT | FORMS[program.form]
    with attention_in_float32(program.dtype):
        return optimize(reduced, batch_size=study.BATCH, **options)


@contextlib.contextmanager
def attention_in_float32(dtype: str):
    """Context in which attention of float16 is computed in float32; of others: none."""
    if dtype != "float16":
        yield
        return
    attend = attention.attend

    def wide(query, key, value, key_bias=None, **options):
        heads = [part.astype(jnp.float32) for part in (query, key, value)]
        return attend(*heads, key_bias, **options).astype(query.dtype)

    with (
        mock.patch.object(attention, "attend", wide),
        mock.patch.object(xla_options, "check_dtype", lambda *_: None),
    ):
        yield


def distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """1 - cosine of vectors. [images, D] twice -> [images]."""
    one = np.float64(one)
    other = np.float64(other)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return 1 - np.sum(one * other, axis=1) / lengths


def rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in values]


# The tables


class Comparison(NamedTuple):
    """How a program's answers differ from another's, image by image."""

    distance: np.ndarray  # KL divergence, or 1 - cosine
    same: np.ndarray | None  # bool, of first classes; None: not known


class Compared:
    """All comparisons of a model on the same images, by (program, base)."""

    def __init__(self, model: str, images: int):
        self.model = model
        self.images = images
        self.pairs = {}

    def to_dense(self, program: Program) -> np.ndarray | None:
        """Distances from the dense model in float32, [images]; None: not measured."""
        if program == ORIGIN:
            return np.zeros(self.images)
        pair = self.pairs.get((program, ORIGIN))
        return pair and pair.distance

    def more(self, program: Program) -> Estimate | None:
        """How much farther from the dense model it is than the program beside it."""
        ours = self.to_dense(program)
        beside = self.to_dense(program.beside)
        if program == program.beside or ours is None or beside is None:
            return None
        return statistics.mean_difference(ours, beside)

    def verdict(self, program: Program) -> str:
        """Whether `more` is below MARGIN: "yes", "no" or "open"; "" without classes."""
        more = self.more(program)
        of_classes = any(pair.same is not None for pair in self.pairs.values())
        if more is None or not of_classes:
            return ""
        if more.high < MARGIN:
            return "yes"
        return "no" if more.low > MARGIN else "open"

    def change(self, program: Program) -> Estimate:
        """Mean distance from the `near` program."""
        return mean(self.pairs[program, program.near].distance)


def read_points() -> dict[tuple[str, int], Compared]:
    """All comparisons, by the model and the number of images."""
    found = {}
    for entry in read_lines(FOLDER / FILE, "setting", "result"):
        setting = entry["setting"]
        result = entry["result"]
        of_images = setting["model"], setting["images"]
        same = None
        if "same" in result:
            same = decode_bits(result["same"], setting["images"])
        pair = Program(*setting["program"]), Program(*setting["base"])
        compared = found.setdefault(of_images, Compared(*of_images))
        compared.pairs[pair] = Comparison(np.array(result["distance"]), same)
    return found


def tables() -> dict[str, str]:
    """The tables of the page, one for each form, by the names in their marks."""
    rows = {form: [] for form in FORMS}
    for compared in read_points().values():
        for program, base in compared.pairs:
            if base == ORIGIN:
                rows[program.form].append(row(compared, program))
    found = {}
    for form, of_form in rows.items():
        example = Program(TOME, "bfloat16", form)
        head = ["model", "images", "reduction", "type", "to dense"]
        head += [f"more than {base_name(example.beside)}", f"less than {MARGIN} more"]
        head += [f"from {base_name(example.near)}", "at most"]
        head.append("first classes that change, %")
        found[form] = markdown_table(head, of_form)
    return found


def base_name(base: Program) -> str:
    """What a plain program is called beside one in bfloat16."""
    return "float32" if base.dtype == "float32" else PLAIN


def row(compared: Compared, program: Program) -> list[str]:
    """A row of a table."""
    cells = [compared.model, f"{compared.images:,}", program.reduction, program.dtype]
    cells.append(small(mean(compared.to_dense(program))))
    cells.append(small(compared.more(program), signs=True))
    cells.append(compared.verdict(program))
    near = compared.pairs.get((program, program.near))
    if near is None:
        return [*cells, "", "", ""]
    cells += [small(mean(near.distance)), f"{near.distance.max():.5f}"]
    changed = None
    if near.same is not None:
        changed = statistics.accuracy(~near.same)
    return [*cells, statistics.format_estimate(changed)]


def mean(values: np.ndarray) -> Estimate:
    """The mean over images, with its interval."""
    return statistics.mean_difference(values, np.zeros(len(values)))


def small(estimate: Estimate | None, signs: bool = False) -> str:
    return statistics.format_estimate(estimate, 5, signs)


def main():
    vit = imagepiece_jax.load(cli.required(WEIGHTS), image_size=study.SIDE)
    images = study.photographs(cli.required(DATA), LIMIT.value, study.SIDE)
    cache = ResultCache(FOLDER, versions=study.versions())
    with contextlib.closing(cache):
        measure(vit.name or vit.source.name, vit, images, cache, TYPES.value)
    replace_file(PAGE, results.filled(PAGE.read_text("utf-8"), tables()))


if __name__ == "__main__":
    cli.run(main)
