"""PyTorch baselines on the same device: timm's model of the same size, and ToMe on it.

python -m tools.torch_baselines deit_s --reductions 0.6 --against timm tome

The other words are `imagepiece benchmark`'s, which runs beside.

Each baseline is timed eager and under torch.compile: in inference with weights of the
benchmark's dtype and fused attention, in training under automatic mixed precision with
fused AdamW. Baselines take turns with our programs in one process, so every ratio comes
from one run.
"""

import dataclasses
import functools
import importlib
import os
from typing import Literal

import jax

from imagepiece_jax import cli
from imagepiece_jax.benchmark import suite
from imagepiece_jax.benchmark import workloads as ours
from imagepiece_jax.benchmark.workloads import NUM_INPUTS, Workload
from imagepiece_jax.commands._arguments import Model
from imagepiece_jax.common import extras, timer, xla_options
from imagepiece_jax.common.machine import available_cores
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.cost import TRAINING_MAC_FACTOR, model_macs

NAMES = ("timm", "tome")
LIBRARIES = ("torch", "timm")
R = 13  # tokens that ToMe merges per block: its setting for models of this size
VARIANTS = ("eager", "torch.compile")


def main(
    model: Model,
    *,
    against: tuple[Literal["timm", "tome"], ...] = NAMES,
    reductions: tuple[str, ...] = (),
    batch_size: tuple[int, ...] = (256,),
    mode: Literal["inference", "train"] = "inference",
    plain: bool = False,
    warmup: int = timer.Timing.warmup,
    repeats: int = timer.Timing.repeats,
    seconds: float = timer.Timing.seconds,
    json: str | None = None,
):
    """Time the model of a name, dense and with reductions, beside PyTorch's.

    Args:
        against: PyTorch in turns with ours.
        reductions: Shares of the dense model's MACs, or methods.
        batch_size: One or more.
        mode: Forward passes, or steps of training.
        plain: Training steps without augmentation and averages of the weights.
        warmup: Calls of each program that are not timed, first.
        repeats: Rounds in which each is timed.
        seconds: That a program is timed in a round, at least.
        json: A file of one line per figure.
    """
    prepare_torch(against)
    named = model.create_named()
    if named is None:
        raise InputError(f"{model.weights} are weights; give the name of a model")
    forms = suite.make_variants(ours.with_random_weights(named), reductions)
    dtype = model.dtype or xla_options.fast_dtype()
    groups = suite.make_case_groups(forms, batch_size, dtype, mode)
    if plain:
        for group in groups:
            for name, case in group.items():
                group[name] = dataclasses.replace(
                    case, run=without_augmentation(case.run)
                )
    rules = timer.Timing(warmup, repeats, seconds)
    suite.time_groups(groups, rules, json, functools.partial(torch_workloads, against))


def without_augmentation(run):
    """A run whose steps compute nothing but the model: forward, backward, AdamW."""
    augment = dataclasses.replace(run.augment, layers=0, erase_prob=0.0)
    changes = {"mixup": 0.0, "cutmix": 0.0, "ema_decay": 0.0}
    return dataclasses.replace(run, augment=augment, **changes)


def prepare_torch(names):
    """Make JAX leave memory of the device to PyTorch, before JAX's first use.

    Raises InputError for a missing library.
    """
    for library in LIBRARIES if names else ():
        try:
            importlib.import_module(library)
        except ImportError as error:
            way_out = extras.install_command("torch")
            text = f"{library} cannot be imported ({error}); {way_out}"
            raise InputError(text) from error
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def torch_workloads(names, cases):
    """{label: Workload} for each model size among `cases`, which have one mode.

    Only "inference" and "train" have baselines; ToMe is not trained.
    """
    first_of_size = {}
    for case in cases:
        first_of_size.setdefault(_timm_size(case), case)
    workloads = {}
    mode = cases[0].mode
    for size, case in first_of_size.items():
        model = case.vit.config.name
        for variant in VARIANTS:
            if mode == "inference" and "timm" in names:
                workloads[f"timm {model}, {variant}"] = _inference_workload(
                    size, case, variant
                )
            if mode == "inference" and "tome" in names:
                label = f"ToMe r={R} on timm {model}, {variant}"
                workloads[label] = _inference_workload(size, case, variant, R)
            if mode == "train" and "timm" in names:
                workloads[f"timm {model}, {variant}"] = _training_workload(
                    size, case, variant
                )
    return workloads


def _timm_size(case):
    """The arguments of timm's constructor, which identify a model's size."""
    config = case.vit.config
    fields = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")
    size = {field: getattr(config, field) for field in (*fields, "num_classes")}
    return *size.items(), ("img_size", config.image_size)


def _images_shape(case):
    """Shape of a batch in PyTorch's order, [batch, 3, S, S]."""
    side = case.vit.image_size
    return case.batch_size, 3, side, side


def _timm_model(size, **options):
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(**dict(size), **options)


def _inference_workload(size, case, variant, r=0):
    """The Workload of inference; r: tokens that ToMe merges in a block, 0: dense."""
    is_compiled = variant == "torch.compile"
    dtype = case.dtype
    call = inference_call(_timm_model(size), _images_shape(case), dtype, is_compiled, r)
    reduction = f"tome:r={R}" if r else None
    return _measured_workload(
        case, call, _reduced_macs(case, reduction), torch_device()
    )


def inference_call(vit, shape, dtype, compiled, r=0, mode=None):
    """A function of a call's number that starts timm's `vit` on noise.

    shape: of images, [B, 3, H, W]
    mode: of torch.compile
    r: tokens that ToMe merges in a block, 0: dense
    """
    import torch

    device = torch_device()
    dtype = getattr(torch, dtype)
    vit = vit.eval().to(device, dtype)

    def forward(images):
        return tome_forward(vit, images, r) if r else vit(images)

    run = forward
    if compiled:
        # All models' `forward` share the limit; beyond it torch runs them eager.
        torch._dynamo.config.recompile_limit = 1000
        run = torch.compile(forward, dynamic=False, mode=mode)
    images = [torch.randn(shape, device=device, dtype=dtype) for _ in range(NUM_INPUTS)]

    def call(number):
        with torch.inference_mode():
            run(images[number % NUM_INPUTS])
        return _record_event(device)

    return call


def _training_workload(size, case, variant):
    """The Workload of training steps."""
    import torch

    device = torch_device()
    rate = case.run.model.drop_path_rate
    vit = _timm_model(size, drop_path_rate=rate).train().to(device)
    dtype = getattr(torch, case.dtype)
    optimizer = torch.optim.AdamW(vit.parameters(), 1e-4, fused=True)
    run = torch.compile(vit) if variant == "torch.compile" else vit
    shape = _images_shape(case)
    images = [torch.randn(shape, device=device) for _ in range(NUM_INPUTS)]
    classes = case.vit.config.num_classes
    targets = torch.randn(case.batch_size, classes, device=device)
    targets = targets.softmax(dim=-1)  # soft labels, as mixup makes them

    def call(number):
        mixed = dtype != torch.float32
        with torch.autocast(device, dtype if mixed else None, enabled=mixed):
            logits = run(images[number % NUM_INPUTS])
        loss = torch.nn.functional.cross_entropy(logits.float(), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return _record_event(device)

    macs = TRAINING_MAC_FACTOR * _reduced_macs(case, None)
    return _measured_workload(case, call, macs, device)


def torch_device():
    """PyTorch's name of JAX's device; sets JAX's cores and precision."""
    import torch

    torch.set_num_threads(available_cores())
    torch.set_float32_matmul_precision("high")  # TF32 where available, as JAX
    device = "cpu" if jax.devices()[0].platform == "cpu" else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "against needs PyTorch with CUDA here, but the installed one finds no GPU"
        )
    return device


def _record_event(where):
    """The event that ends a call; None on a CPU, where calls are synchronous."""
    import torch

    if where == "cpu":
        return None
    event = torch.cuda.Event()
    event.record()
    return event


def wait_for_event(event):
    if event is not None:
        event.synchronize()


def _reduced_macs(case, reduction):
    """MACs of an image through our model with a reduction."""
    return model_macs(case.vit.reduced_model(reduction))


def _measured_workload(case, call, macs, where):
    """The Workload of `call`: compiled by a first call, memory of the second."""
    import torch

    wait_for_event(call(0))
    peak = None
    if where == "cuda":
        torch.cuda.reset_peak_memory_stats()
        wait_for_event(call(1))
        peak = torch.cuda.max_memory_allocated()
    facts = {"attention": "sdpa", "gelu": "exact", "peak_memory": peak}
    images = case.batch_size
    return Workload(timer.TimedCall(call, wait_for_event), images, images * macs, facts)


def tome_forward(vit, images, r):
    """Logits of timm's `vit`, r tokens merged per block. [B, 3, H, W] -> [B, C].

    Token merging (Bolya et al., ICLR 2023), section 3: in every block, between
    attention and MLP, tokens at even positions find their most similar token at odd
    positions, by the cosine of keys averaged over heads. The r most similar pairs
    become one token each, the mean of their patches. Proportional attention weights a
    token by its number of patches.
    """
    import torch

    x = vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))
    size = torch.ones_like(x[..., :1])
    for block in vit.blocks:
        attended, key = _attend_with_keys(block.attn, block.norm1(x), size)
        x = x + attended
        merges = min(r, (x.shape[1] - 1) // 2)
        if merges:
            x, size = merge_pairs(x, size, key.mean(dim=1), merges)
        x = x + block.mlp(block.norm2(x))
    return vit.forward_head(vit.norm(x))


def _attend_with_keys(attention, x, size):
    """timm's attention with log(size) on the logits, and its keys [B, H, N, d].

    The kernel is fused, though the published code builds the matrix: the faster version
    is the fairer baseline.
    """
    from torch.nn import functional

    batch, length, dim = x.shape
    shape = (batch, length, 3, attention.num_heads, dim // attention.num_heads)
    query, key, value = attention.qkv(x).reshape(shape).permute(2, 0, 3, 1, 4)
    bias = size.log().transpose(1, 2)[:, None]  # [B, 1, 1, N]
    out = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    return attention.proj(out.transpose(1, 2).reshape(batch, length, dim)), key


def merge_pairs(x, size, metric, merges):
    """Replace the most similar pairs by their means: (x, size), `merges` tokens fewer.

    The class token, at position 0, stays. The remaining even tokens come first, in
    order, then the odd ones.

    x: [B, N, D]
    size: [B, N, 1], in patches
    metric: [B, N, d], whose cosine says how similar two tokens are
    """
    import torch
    from torch.nn import functional

    metric = functional.normalize(metric, dim=-1)
    similarity = metric[:, ::2] @ metric[:, 1::2].transpose(1, 2)
    similarity[:, 0] = -torch.inf
    best, partner = similarity.max(dim=-1)
    order = best.argsort(dim=-1, descending=True)
    absorbed = order[:, :merges, None]
    staying = order[:, merges:, None]
    staying = staying.sort(dim=1).values
    joined = partner[..., None].gather(1, absorbed)

    def sum_pairs(values):
        even = values[:, ::2]
        odd = values[:, 1::2]
        width = values.shape[-1]
        moved = even.gather(1, absorbed.expand(-1, -1, width))
        odd = odd.scatter_add(1, joined.expand(-1, -1, width), moved)
        return torch.cat([even.gather(1, staying.expand(-1, -1, width)), odd], dim=1)

    total = sum_pairs(x * size)
    size = sum_pairs(size)
    return total / size, size


if __name__ == "__main__":
    cli.run_command(main)
