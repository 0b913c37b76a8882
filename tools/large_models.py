"""Large public models, dense and reduced: timed on a GPU, and compiled without one.

python -m tools.large_models --out docs/tables/large_models.md [--timed]

What `tools.gpu_speed` timed are lines of docs/tables/h200/large.jsonl; --timed writes
only their tables, and keeps the estimates. For these a reduced model has the setting
whose MACs are nearest to a share of the dense model's; as tools.compile_only they need
JAX's CUDA wheels.
"""

import pathlib

from imagepiece_jax import cli
from imagepiece_jax.common.files import replace_file
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.inference import optimize
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.models.spec import create_model
from imagepiece_jax.reduction.reduction import Reduction
from tools import compile_only, gpu_speed, h200

OUT = cli.text("out", None, "the page to write")
TIMED = cli.switch("timed", False, "write only the tables of what was timed")
FILE = pathlib.Path(__file__).parent.parent / "docs/tables/h200/large.jsonl"
SHARE = 0.6  # of the dense model's MACs
BATCH = 64
# Weights, and the sides of images in pixels.
CASES = {
    "vit_base_patch16_224.augreg_in21k_ft_in1k": (224, 384, 512),
    "vit_large_patch16_224.augreg_in21k_ft_in1k": (224, 384, 512),
    "vit_so400m_patch14_siglip_224.webli": (224, 378, 518),
}
REDUCTIONS = ({"name": "none"}, {"name": "tome"}, {"name": "imagepiece"})
# Also, for models without class token: the default score reads the whole attention.
BY_SHIFT = {"name": "imagepiece", "score": "shift"}
HEAD = ["model", "pixels", "reduction", "tokens left", "GMACs", "kernels"]
HEAD += ["guessed ms", "x dense", "x by MACs"]
TITLE = "# Large models\n\n## Timed\n\n"
UNTIMED = """No GPU has timed these models yet. `tools/gpu_session.sh 4 5 6 7` times
ViT-B/16, ViT-L/16, SigLIP So400m/14 at 224 and 384 pixels, CLIP-L/14 at 336 and
DINOv3-L/16 at 512, dense and with `reduction=0.5`, at batches from 1 to 256, and timm's
ViT-L and So400m beside them.
"""
NOTE = f"""
## Guessed for an H200

Compiled for an NVIDIA H200 in bfloat16 with exact GELU and a bias of
sizes, batches of {BATCH}, not run: milliseconds are estimates from bytes and products
of every kernel, good for comparing programs. Reductions had one kernel each, as up to
revision 576324ff. Reduced models have the setting whose MACs are nearest to
{SHARE:g} of the dense model's.

"""


def main():
    page = pathlib.Path(cli.required(OUT))
    if TIMED.value:
        _, _, guessed = page.read_text("utf-8").partition(NOTE)
        replace_file(page, f"{TITLE}{timed()}{NOTE}{guessed}")
        return
    rows = []
    h200.device()  # before JAX is used otherwise
    for name, sizes in CASES.items():
        for size in sizes:
            built = compared(name, size)
            print(*built, sep="\n", flush=True)
            rows += built
            guessed = markdown_table(HEAD, rows)
            replace_file(page, f"{TITLE}{timed()}{NOTE}{guessed}\n")


def timed():
    """The tables of what was timed; before that, a sentence that says so."""
    if not FILE.exists():
        return UNTIMED
    rows = gpu_speed.read_rows(FILE)
    made = (gpu_speed.growth(rows), gpu_speed.beside_timm(rows))
    return "\n\n".join(filter(None, made)) + "\n"


def compared(name, size):
    """A row for the dense model and each reduction."""

    def model(reduction):
        fields = {"dtype": "bfloat16", "attention": "xla", "image_size": size}
        return create_model(name, reduction=reduction, **fields)

    def cost(reduction):
        return model_macs(model(reduction), size)

    full = model(REDUCTIONS[0])
    rows = []
    dense_macs = model_macs(full, size)
    dense_ms = None
    depth = full.depth
    reductions = REDUCTIONS if full.arch.class_token else (*REDUCTIONS, BY_SHIFT)
    for reduction in reductions:
        if reduction["name"] == "imagepiece":  # its 8 % a block are for 12 blocks
            reduction = reduction | {"merge_ratio": round(0.96 / depth, 4)}
        if reduction["name"] != "none":
            reduction = {**reduction, "macs": SHARE}
        built = model(reduction)
        form = built.arch.gelu  # and a bias: as before GPUs took other forms
        text = compile_only.forward_text(
            built, BATCH, size, "bfloat16", _placed, gelu=form, sizes="bias"
        )
        by_kind = h200.summary(text)
        kernels, ms = (sum(part) for part in zip(*by_kind.values(), strict=True))
        if dense_ms is None:  # the first is dense
            dense_ms = round(ms, 3)
        row = [name, size, Reduction.read(reduction).words, built.plan[-1].mlp_tokens]
        row += [f"{cost(reduction) / 1e9:.1f}", kernels, f"{ms:.3f}"]
        row += [f"{dense_ms / ms:.2f}", f"{dense_macs / cost(reduction):.2f}"]
        rows.append(row)
    return rows


def _placed(model):
    return optimize.for_device(model, h200.device())


if __name__ == "__main__":
    cli.run(main)
