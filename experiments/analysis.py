"""Where merging happens and what is merged: the paper's tables 5, 6, 7 and 8."""

import itertools

import numpy as np

from experiments import intervals, merges, published, tables
from experiments.study import interval
from experiments.tables import BLANK, TableRow, find
from imagepiece_jax.common.image_size import sides
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.evaluate import statistics
from imagepiece_jax.reduction import methods
from imagepiece_jax.reduction.settings import split_reduction
from imagepiece_jax.reduction.token_counts import floor

REDUCTION = {"name": "imagepiece"}
ROWS = (tables.TOME, tables.IMAGEPIECE, tables.IMAGEPIECE_PATCH)
STEMS = {stem: TableRow(f"{stem} stem", REDUCTION, stem) for stem in ("patch", "conv")}
LOWEST = 0.01  # share of the images: the paper shows the mean of 500 of 50,000
ENDS = ("first", "last")
KINDS = {"src": False, "both": True}  # are tokens that others merge into counted, too?
STEM_FIGURES = {
    "lowest": "merged pairs, lowest 1 %",
    "pairs": "merged pairs, all images",
    "candidates": "all pairs of candidates",
    "distance": "distance of merged pairs, patches",
}


def reassess(paper):
    """Table 5: how many merged tokens count as attentive one block later; reassess.md.

    Tokens that a merge has just made of patches that were all among the least
    attended. They count as attentive if (a) they are not among the lowest candidates of
    the next block, or (b), where that block prunes, they are kept. The published ratios
    fit (a) where the next block merges and (b) where it prunes. Were the order random,
    70 % (a) and 80 % (b) would.
    """
    rows = (tables.IMAGEPIECE, tables.IMAGEPIECE_PATCH)
    models = []
    for row in rows:
        models += find(paper, row)
    pretrained, reduction = models[0] if models else (paper.pretrained, REDUCTION)
    lines = []
    for block, figures in attentive_ratios(paper, pretrained, reduction).items():
        line = [int(block) + 1, published.text(published.REASSESS.get(int(block)))]
        line += [interval(figures["own"]), figures["rule"]]
        lines.append([*line, interval(figures["candidates"])])
    head = ["layer (from 1)", f"%, DeiT-S ({published.LABEL})", "%, measured"]
    head += ["counts as attentive if", "%, by (a) everywhere"]
    text = markdown_table(head, lines)
    title = "merged tokens judged again"
    facts = paper.facts({"stem": pretrained.model.stem})
    paper.write_page("reassess", title, text, facts)


def attentive_ratios(paper, pretrained, reduction):
    """{block: dict(own, candidates, rule)} of blocks right after a merge, percent."""
    fields, _ = split_reduction(reduction)
    share = getattr(methods.create(**fields), "candidate_ratio", 0.3)
    steps = merges.sites(pretrained.model_with(reduction))
    after = [
        (before, here)
        for before, here in zip(steps, steps[1:], strict=False)
        if before.merges and here.block == before.block + 1
    ]

    def measure(outputs, batch):
        ratios = {}
        for before, here in after:
            merged = merges.merged_slots(outputs.results[before.place])
            attention = outputs.taps[here.place].cls_attn
            n = here.counts.n_in
            upper = n - floor(share * n)
            own = upper if here.merges else here.counts.n_out
            for name, count in (("own", own), ("candidates", upper)):
                ratio = merges.attentive_share(merged, attention, count)
                ratios[f"{here.block} {name}"] = 100 * ratio
        return ratios

    def summarize(arrays):
        return {
            str(here.block): {
                "own": intervals.mean(arrays[f"{here.block} own"]),
                "candidates": intervals.mean(arrays[f"{here.block} candidates"]),
                "rule": "(a) above the candidates" if here.merges else "(b) kept",
            }
            for _, here in after
        }

    return paper.inside("reassess", pretrained, reduction, measure, summarize)


def similarity(paper):
    """Table 6: cosine similarity of merged pairs, first and last merge; similarity.md.

    An image has the mean over the pairs that a step merged, by the keys that it matched
    (their mean over heads); the table has the means of the lowest 1 % and of all.
    """
    lines = []
    for row in ROWS:
        printed = published.SIMILARITY.get(row.name, (None, None))
        line = [row.name, *(published.text(value, 4) for value in printed)]
        models = find(paper, row)
        if not models:
            lines.append([*line, *[BLANK] * 5])
            continue
        estimates = first_and_last(paper, *models[0])
        line += [interval(estimates[f"lowest {at}"], 4) for at in ENDS]
        gap = statistics.Estimate(*estimates["gap"])
        line += [statistics.format_difference(gap, 4)]
        line += [interval(estimates[f"all {at}"], 4) for at in ENDS]
        lines.append(line)
    head = ["model", *(f"{at} merge, DeiT-S ({published.LABEL})" for at in ENDS)]
    head += [f"{at} merge, lowest 1 %" for at in ENDS] + ["last - first"]
    head += [f"{at} merge, all images" for at in ENDS]
    count = lowest_count(len(paper.images))
    chosen = f"{count} of {len(paper.images)} images, anew for each figure"
    facts = paper.facts({"lowest 1 % (published: 500 of 50,000)": chosen})
    title = "likeness of merged pairs"
    paper.write_page("similarity", title, markdown_table(head, lines), facts)


def first_and_last(paper, pretrained, reduction):
    """Estimates by "lowest first", "all last", ..., and their "gap" (of the lowest)."""
    merging = _merging(pretrained, reduction)
    ends = dict(zip(ENDS, (merging[0], merging[-1]), strict=True))

    def measure(outputs, batch):
        return {
            at: merges.pair_similarity(
                outputs.taps[site.place], outputs.results[site.place]
            )
            for at, site in ends.items()
        }

    def summarize(arrays):
        first, last = (arrays[at].astype(np.float64) for at in ENDS)
        gap = intervals.bootstrap(
            lambda index: lowest(last[index]) - lowest(first[index]), len(first)
        )
        estimates = {"gap": gap}
        for at, values in (("first", first), ("last", last)):
            estimates[f"all {at}"] = intervals.mean(values)
            estimates[f"lowest {at}"] = lowest_mean(values)
        return estimates

    return paper.inside("similarity", pretrained, reduction, measure, summarize)


def _merging(pretrained, reduction):
    """The Sites that merge."""
    steps = merges.sites(pretrained.model_with(reduction))
    return [site for site in steps if site.merges]


def lowest_count(images: int) -> int:
    """How many images the lowest share is, at least one."""
    return max(1, round(LOWEST * images))


def lowest(values: np.ndarray) -> float:
    """Mean of the lowest 1 % of values [images]."""
    return float(np.sort(values)[: lowest_count(len(values))].mean())


def lowest_mean(values: np.ndarray) -> statistics.Estimate:
    """`lowest` of values [images], by bootstrap."""
    return intervals.bootstrap(lambda index: lowest(values[index]), len(values))


def overlap(paper):
    """Table 7: share of ToMe's first merged tokens that are well attended; overlap.md.

    Percent of the tokens merged in the first block that are among the top k % by that
    block's class attention; by chance k %. The paper does not say whether "merged" are
    the tokens that leave or also those they are merged into: both are here.
    """
    lines = []
    for size, values in published.OVERLAP.items():
        cells = [published.text(value) for value in values]
        lines.append(
            [f"ToMe, {published.SIZES[size]}", f"not said ({published.LABEL})", *cells]
        )
    for row in ROWS:
        models = find(paper, row)
        for kind in KINDS if models else ():
            shares = attended_shares(paper, *models[0])
            figures = [shares[f"{kind} {k}"] for k in published.OVERLAP_K]
            cells = [interval(figure) for figure in figures]
            lines.append([row.name, f"{kind} (measured)", *cells])
    lines.append(["chance", "", *(f"{k}" for k in published.OVERLAP_K)])
    head = ["model", "merged are", *(f"top {k} %" for k in published.OVERLAP_K)]
    note = (
        "src: the tokens that leave; both: and those they are merged into. ImagePiece "
        "merges among the least attended 30 %, so its zeros are by construction."
    )
    title = "merged tokens among the most attended, %"
    text = markdown_table(head, lines)
    facts = paper.facts()
    paper.write_page("overlap", title, text, note, facts)


def attended_shares(paper, pretrained, reduction):
    """Estimates by "src 30", "both 30", ..., percent, of the first reducing block."""
    site = _merging(pretrained, reduction)[0]

    def measure(outputs, batch):
        result = outputs.results[site.place]
        attention = outputs.taps[site.place].cls_attn
        members = {
            kind: merges.taking_part(result, site.counts.n_in, both)
            for kind, both in KINDS.items()
        }
        shares = {}
        for kind, k in itertools.product(KINDS, published.OVERLAP_K):
            percent = merges.percent_attended(members[kind], attention, k)
            shares[f"{kind} {k}"] = percent
        return shares

    def summarize(arrays):
        names = [name for name in arrays if name != "index"]
        return {name: intervals.mean(arrays[name]) for name in names}

    return paper.inside("overlap", pretrained, reduction, measure, summarize)


def lcb_similarity(paper):
    """Table 8: likeness of ImagePiece's first pairs by stem; lcb-similarity.md.

    Likeness of the merged pairs and of all pairs that could have been merged, and how
    far apart on the image the merged ones are.
    """
    lines = []
    for stem, row in STEMS.items():
        line = [row.name, published.text(published.LCB_SIMILARITY[stem], 4)]
        models = find(paper, row, by_stem=True)
        if not models:
            lines.append([*line, "", *[BLANK] * len(STEM_FIGURES)])
        for pretrained, reduction in models:
            estimates = first_merge(paper, pretrained, reduction)
            cells = [interval(estimates[name], 3) for name in STEM_FIGURES]
            lines.append([*line, pretrained.source.seed, *cells])
    head = ["model", f"DeiT-S, lowest 1 % ({published.LABEL})", "seed"]
    note = {"merge": "ImagePiece's first"}
    if paper.models.trains:
        note["convolutional stem"] = "fresh, and has learned little"
    text = markdown_table([*head, *STEM_FIGURES.values()], lines)
    title = "likeness of candidates by stem"
    paper.write_page("lcb-similarity", title, text, paper.facts(note))


def first_merge(paper, pretrained, reduction):
    """Estimates by the names of STEM_FIGURES."""
    site = _merging(pretrained, reduction)[0]
    patch = pretrained.model_with(reduction).patch_size
    width = sides(pretrained.image_size)[1] // patch

    def measure(outputs, batch):
        result = outputs.results[site.place]
        taps = outputs.taps[site.place]
        return {
            "pairs": merges.pair_similarity(taps, result),
            "candidates": merges.candidate_similarity(taps, site.counts),
            "distance": merges.pair_distance(result, width),
        }

    def summarize(arrays):
        pairs = arrays["pairs"].astype(np.float64)
        means = ("pairs", "candidates", "distance")
        estimates = {name: intervals.mean(arrays[name]) for name in means}
        return estimates | {"lowest": lowest_mean(pairs)}

    return paper.inside("lcb-similarity", pretrained, reduction, measure, summarize)
