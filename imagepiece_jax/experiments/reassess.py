"""Table 5: do merged tokens, judged again one block later, count as attentive?

A token is looked at that a merge has just made, of patches that were all among the
least attended. In the next block it counts as attentive if (a) it is not among the
lowest candidates there, or (b), where that block prunes, it is among those kept. The
published ratios fit (a) where the next block merges and (b) where it prunes. Were the
order random, 70 % (a) and 80 % (b) would.
"""

from imagepiece_jax.evaluate import statistics
from imagepiece_jax.experiments import analysis, published, render
from imagepiece_jax.experiments.render import estimate
from imagepiece_jax.experiments.rows import Row, find, form
from imagepiece_jax.reduction.rules import floor

IMAGEPIECE = {"name": "imagepiece"}
ROWS = (Row("ImagePiece", IMAGEPIECE, "conv"), Row("patch stem", IMAGEPIECE))


def run(lab):
    """Measure the ratios of the first model that is there, and write reassess.md."""
    (subject, reduction), *_ = _models(lab)
    found = ratios(lab, subject, reduction)
    lines = []
    for block, figures in found.items():
        printed = published.REASSESS.get(int(block))
        lines.append(
            [
                int(block) + 1,
                render.number(printed),
                statistics.format_estimate(estimate(figures["own"])),
                figures["rule"],
                statistics.format_estimate(estimate(figures["candidates"])),
            ]
        )
    head = ["layer (from 1)", f"%, DeiT-S ({published.LABEL})", "%, measured"]
    head += ["counts as attentive if", "%, by (a) everywhere"]
    note = f"{form(lab)} Stem: {subject.stem}. {render.images_note(lab)}"
    render.page(
        lab, "reassess", "merged tokens judged again", render.table(head, lines), note
    )


def _models(lab):
    found = [model for row in ROWS for model in find(lab, row)]
    return found or [(lab.one(), IMAGEPIECE)]


def ratios(lab, subject, reduction):
    """{block: dict(own, candidates, rule)} of blocks right after a merge, percent."""
    model = analysis.observed(subject.model(reduction))
    share = candidate_share(reduction)
    after = [
        (before, here)
        for before, here in zip(
            analysis.sites(model), analysis.sites(model)[1:], strict=False
        )
        if before.merges and here.block == before.block + 1
    ]

    def measure(outputs, batch):
        found = {}
        for before, here in after:
            merged = analysis.merged_slots(outputs.results[before.place])
            attention = outputs.taps[here.place].cls_attn
            n = here.counts.n_in
            upper = n - floor(share * n)
            kept = upper if here.merges else here.counts.n_out
            for name, count in (("own", kept), ("candidates", upper)):
                ratio = analysis.attentive_share(merged, attention, count)
                found[f"{here.block} {name}"] = 100 * ratio
        return found

    def summarise(arrays):
        return {
            str(here.block): {
                "own": statistics.mean(arrays[f"{here.block} own"]),
                "candidates": statistics.mean(arrays[f"{here.block} candidates"]),
                "rule": "(a) above the candidates" if here.merges else "(b) kept",
            }
            for _, here in after
        }

    found = lab.inside("reassess", subject, reduction, measure, model, summarise)
    return {block: figures for block, figures in found.items() if block != "images"}


def candidate_share(reduction):
    """Share of the tokens that count as candidates."""
    return reduction.get("candidate_ratio", 0.3)
