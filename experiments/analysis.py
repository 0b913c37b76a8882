"""Where merging happens and what is merged: the paper's tables 5, 6, 7 and 8."""

import itertools

import numpy as np

from experiments import intervals, merges, paper_tables, published
from experiments.paper_tables import BLANK, TableRow, find_models
from imagepiece_jax.common import statistics
from imagepiece_jax.common.image_size import image_sides
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.reduction.block_plan import exact_floor
from imagepiece_jax.reduction.reduction import Reduction

REDUCTION = "imagepiece"
ROWS = (paper_tables.TOME, paper_tables.IMAGEPIECE, paper_tables.IMAGEPIECE_PATCH)
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


def format_interval(values, digits=1):
    """A JSON list, [value, low, high], as text."""
    return statistics.format_estimate(statistics.Estimate(*values), digits)


def write_reassess_page(study):
    """Table 5: how many merged tokens count as attentive one block later; reassess.md.

    All patches of a token that a merge has just made were among the least attended. It
    counts as attentive if (a) it is not among the lowest candidates of the next block,
    or (b), where that block prunes, it is kept. The published ratios fit (a) where the
    next block merges and (b) where it prunes. Were the order random, 70 % (a) and 80 %
    (b) would count.
    """
    models = find_models(study, paper_tables.IMAGEPIECE)
    models = models or find_models(study, paper_tables.IMAGEPIECE_PATCH)
    vit, reduction = models[0] if models else (study.pretrained, REDUCTION)
    lines = []
    for block, figures in attentive_ratios(study, vit, reduction).items():
        printed = published.format_figure(published.REASSESS.get(int(block)))
        line = [int(block) + 1, printed, format_interval(figures["own"])]
        lines.append([*line, figures["rule"], format_interval(figures["candidates"])])
    head = ["layer (from 1)", f"%, DeiT-S ({published.LABEL})", "%, measured"]
    head += ["counts as attentive if", "%, by (a) everywhere"]
    text = markdown_table(head, lines)
    facts = study.facts({"stem": vit.model.config.stem})
    study.write_page("reassess", "merged tokens judged again", text, facts)


def attentive_ratios(study, vit, reduction):
    """{block: dict(own, candidates, rule)} of blocks right after a merge, percent."""
    method = Reduction.read(reduction).method
    share = getattr(method, "candidate_ratio", 0.3)
    steps = merges.list_sites(vit.reduced_model(reduction))
    neighbors = []  # (a merge, the step of the next block)
    for previous, site in itertools.pairwise(steps):
        if previous.merges and site.block == previous.block + 1:
            neighbors.append((previous, site))

    def read(outputs, batch):
        ratios = {}
        for previous, site in neighbors:
            merged = merges.merged_slots(outputs.results[previous.step])
            attention = outputs.reducer_inputs[site.step].cls_attn
            n = site.counts.n_in
            upper = n - exact_floor(share * n)
            own = upper if site.merges else site.counts.n_out
            for name, count in (("own", own), ("candidates", upper)):
                ratio = merges.attentive_share(merged, attention, count)
                ratios[f"{site.block} {name}"] = 100 * ratio
        return ratios

    def summarize(arrays):
        by_block = {}
        for _, site in neighbors:
            figures = {}
            for name in ("own", "candidates"):
                figures[name] = intervals.estimate_mean(arrays[f"{site.block} {name}"])
            figures["rule"] = "(a) above the candidates" if site.merges else "(b) kept"
            by_block[str(site.block)] = figures
        return by_block

    return study.inside("reassess", vit, reduction, read, summarize)


def write_similarity_page(study):
    """Table 6: cosine similarity of merged pairs, first and last merge; similarity.md.

    An image has the mean over the pairs that a step merged, by the keys that it matched
    (their mean over heads); the table has the means of the lowest 1 % and of all.
    """
    lines = []
    for row in ROWS:
        figures = published.SIMILARITY.get(row.name, (None, None))
        line = [row.name, *(published.format_figure(figure, 4) for figure in figures)]
        models = find_models(study, row)
        if models:
            estimates = first_and_last(study, *models[0])
            line += [format_interval(estimates[f"lowest {end}"], 4) for end in ENDS]
            gap = statistics.Estimate(*estimates["gap"])
            line.append(statistics.format_difference(gap, 4))
            line += [format_interval(estimates[f"all {end}"], 4) for end in ENDS]
        else:
            line += [BLANK] * 5
        lines.append(line)
    head = ["model"]
    head += [f"{end} merge, DeiT-S ({published.LABEL})" for end in ENDS]
    head += [f"{end} merge, lowest 1 %" for end in ENDS]
    head.append("last - first")
    head += [f"{end} merge, all images" for end in ENDS]
    images = len(study.images)
    chosen = f"{lowest_count(images)} of {images} images, anew for each figure"
    facts = study.facts({"lowest 1 % (published: 500 of 50,000)": chosen})
    title = "likeness of merged pairs"
    study.write_page("similarity", title, markdown_table(head, lines), facts)


def first_and_last(study, vit, reduction):
    """Estimates by "lowest first", "all last", ..., and the lowest's "gap"."""
    merging = merging_sites(vit, reduction)
    ends = {"first": merging[0], "last": merging[-1]}

    def read(outputs, batch):
        similarities = {}
        for end, site in ends.items():
            inputs = outputs.reducer_inputs[site.step]
            pairs = site_pairs(outputs, site)
            similarities[end] = merges.pair_similarity(inputs, pairs)
        return similarities

    def summarize(arrays):
        first, last = (arrays[end].astype(np.float64) for end in ENDS)

        def gap(index):
            return mean_lowest(last[index]) - mean_lowest(first[index])

        estimates = {"gap": intervals.bootstrap_statistic(gap, len(first))}
        for end, values in zip(ENDS, (first, last), strict=True):
            estimates[f"all {end}"] = intervals.estimate_mean(values)
            estimates[f"lowest {end}"] = estimate_lowest(values)
        return estimates

    return study.inside("similarity", vit, reduction, read, summarize)


def merging_sites(vit, reduction):
    """The Sites that merge."""
    steps = merges.list_sites(vit.reduced_model(reduction))
    return [site for site in steps if site.merges]


def site_pairs(outputs, site):
    """`merges.merged_pairs` of a Site."""
    inputs = outputs.reducer_inputs[site.step]
    result = outputs.results[site.step]
    return merges.merged_pairs(inputs, result, site.reducer, site.counts)


def lowest_count(images):
    """How many images the lowest share is, at least one."""
    return max(1, round(LOWEST * images))


def mean_lowest(values):
    """Mean of the lowest 1 % of values [images]."""
    return float(np.sort(values)[: lowest_count(len(values))].mean())


def estimate_lowest(values):
    """`mean_lowest` of values [images], by bootstrap."""
    count = len(values)
    return intervals.bootstrap_statistic(lambda i: mean_lowest(values[i]), count)


def write_overlap_page(study):
    """Table 7: share of ToMe's first merged tokens that are well attended; overlap.md.

    Percent of the tokens merged in the first block that are among the top k % by that
    block's class attention; by chance k %. The paper does not say whether "merged"
    includes the tokens that others merge into: the table has both.
    """
    lines = []
    for size, values in published.OVERLAP.items():
        name = f"ToMe, {published.SIZES[size]}"
        figures = map(published.format_figure, values)
        lines.append([name, f"not said ({published.LABEL})", *figures])
    tops = published.OVERLAP_K
    for row in ROWS:
        for vit, reduction in find_models(study, row)[:1]:
            shares = attended_shares(study, vit, reduction)
            for kind in KINDS:
                figures = [format_interval(shares[f"{kind} {k}"]) for k in tops]
                lines.append([row.name, f"{kind} (measured)", *figures])
    lines.append(["chance", "", *map(str, tops)])
    head = ["model", "merged are", *(f"top {k} %" for k in tops)]
    note = (
        "src: the leaving tokens; both: also the tokens they merge into. ImagePiece "
        "merges among the least attended 30 %, so its zeros are by construction."
    )
    title = "merged tokens among the most attended, %"
    study.write_page("overlap", title, markdown_table(head, lines), note, study.facts())


def attended_shares(study, vit, reduction):
    """Estimates by "src 30", "both 30", ..., percent, of the first reducing block."""
    site, *_ = merging_sites(vit, reduction)

    def read(outputs, batch):
        pairs = site_pairs(outputs, site)
        attention = outputs.reducer_inputs[site.step].cls_attn
        shares = {}
        for kind, both in KINDS.items():
            members = merges.mark_merged_tokens(pairs, site.counts.n_in, both)
            for k in published.OVERLAP_K:
                attended = merges.percent_attended(members, attention, k)
                shares[f"{kind} {k}"] = attended
        return shares

    def summarize(arrays):
        return {name: intervals.estimate_mean(array) for name, array in arrays.items()}

    return study.inside("overlap", vit, reduction, read, summarize)


def write_lcb_page(study):
    """Table 8: likeness of ImagePiece's first pairs by stem; lcb-similarity.md.

    The table has the likeness of merged pairs and of all possible pairs, and how far
    apart merged patches lie on the image.
    """
    lines = []
    for stem, row in STEMS.items():
        line = [row.name, published.format_figure(published.LCB_SIMILARITY[stem], 4)]
        models = find_models(study, row)
        if not models:
            blanks = [BLANK] * len(STEM_FIGURES)
            lines.append([*line, "", *blanks])
        for vit, reduction in models:
            estimates = first_merge(study, vit, reduction)
            figures = [format_interval(estimates[name], 3) for name in STEM_FIGURES]
            lines.append([*line, vit.origin.seed, *figures])
    head = ["model", f"DeiT-S, lowest 1 % ({published.LABEL})", "seed"]
    head += STEM_FIGURES.values()
    facts = study.facts({"merge": "ImagePiece's first"})
    title = "likeness of candidates by stem"
    study.write_page("lcb-similarity", title, markdown_table(head, lines), facts)


def first_merge(study, vit, reduction):
    """Estimates by the names of STEM_FIGURES."""
    site, *_ = merging_sites(vit, reduction)
    _, side = image_sides(vit.image_size)
    patches_in_row = side // vit.config.patch_size

    def read(outputs, batch):
        inputs = outputs.reducer_inputs[site.step]
        pairs = site_pairs(outputs, site)
        return {
            "pairs": merges.pair_similarity(inputs, pairs),
            "candidates": merges.candidate_similarity(inputs, site.counts),
            "distance": merges.pair_distance(pairs, patches_in_row),
        }

    def summarize(arrays):
        estimates = {"lowest": estimate_lowest(arrays["pairs"].astype(np.float64))}
        for name in ("pairs", "candidates", "distance"):
            estimates[name] = intervals.estimate_mean(arrays[name])
        return estimates

    return study.inside("lcb-similarity", vit, reduction, read, summarize)
