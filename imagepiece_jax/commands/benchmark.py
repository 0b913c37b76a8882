"""Images per second of a model, dense and with reductions, on one device."""

from typing import Literal

from imagepiece_jax.commands._arguments import Model, option_values
from imagepiece_jax.common.files import check_writable
from imagepiece_jax.common.timer import Timing
from imagepiece_jax.errors import InputError


def main(
    model: Model,
    *,
    reductions: tuple[str, ...] | None = None,
    batch_size: tuple[int, ...] | None = None,
    mode: Literal["inference", "train"] = "inference",
    gelu: Literal["exact", "tanh"] | None = None,
    warmup: int = Timing.warmup,
    repeats: int = Timing.repeats,
    seconds: float = Timing.seconds,
    json: str | None = None,
) -> None:
    """Time the dense model and every reduction in turns, in one process.

    A speed is the median of the rounds, with the lowest and the highest beside it.
    MODEL may be an exported file, which its runtime runs.

    Example: imagepiece benchmark weights --reductions 0.6 tome:r=1

    Args:
        reductions: Shares of the dense model's MACs, or methods.
        batch_size: One or more; if unset 256, or an exported file's own size, or 1.
        mode: Forward passes, or training steps by DeiT's recipe.
        gelu: The GELU variant in the optimized program.
        warmup: Untimed calls per program, first.
        repeats: Timed rounds.
        seconds: Minimum time per program and round.
        json: A file to write, with one line per program.
    """
    from imagepiece_jax.benchmark import suite, workloads
    from imagepiece_jax.common import xla_options
    from imagepiece_jax.weights.folder_files import list_input_files

    batch_sizes = option_values("batch_size", batch_size)
    timing = Timing(warmup, repeats, seconds)
    if json:
        endings = (".json", ".jsonl")
        check_writable("json", json, endings, list_input_files(model.weights))
    reduction_texts = option_values("reductions", reductions)
    program = model.open_exported()
    if program is not None:
        if reduction_texts or gelu or mode != "inference":
            raise InputError("reductions, gelu and mode are for weights, not a file")
        variants = {program.origin.name: program}
        batch_sizes = batch_sizes or (program.batch_size or 1,)  # None: any size
        dtype = program.model.execution.dtype.name
    else:
        named_model = model.create_named()
        if named_model is None:
            # The seed is for selectors, whose values do not matter.
            pretrained = model.load_model(seed=0)
        else:
            pretrained = workloads.with_random_weights(named_model)
        own_name = model.reduction or "as it is"
        variants = suite.make_variants(pretrained, reduction_texts, own_name)
        dtype = model.dtype or xla_options.fast_dtype()
    batch_sizes = batch_sizes or (256,)
    case_groups = suite.make_case_groups(variants, batch_sizes, dtype, mode, gelu)
    suite.time_groups(case_groups, timing, json)
