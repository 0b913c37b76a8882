"""Training steps of timm's model of the same size beside ours, on the same device.

python -m tools.torch_baselines deit_s --reductions 0.6

timm's model is timed eager and under torch.compile, in automatic mixed precision with
fused AdamW. Our steps have no augmentation and no averages of weights. All take turns
in one process, so every ratio comes from one run. `tools.gpu_speed` times inference.
"""

import dataclasses
import importlib
import os

import jax

from imagepiece_jax import cli
from imagepiece_jax.benchmark import suite, workloads
from imagepiece_jax.commands._arguments import Model
from imagepiece_jax.common import extras, timer, xla_options
from imagepiece_jax.common.device import NUM_INPUTS, available_cores
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.cost import TRAINING_MAC_FACTOR, model_macs

VARIANTS = ("eager", "torch.compile")


def main(
    model: Model,
    *,
    reductions: tuple[str, ...] = (),
    batch_size: tuple[int, ...] = (256,),
    warmup: int = timer.Timing.warmup,
    repeats: int = timer.Timing.repeats,
    seconds: float = timer.Timing.seconds,
    json: str | None = None,
):
    """Time steps of the model of a name, dense and with reductions, beside timm's.

    Args:
        reductions: Shares of the dense model's MACs, or methods.
        batch_size: One or more.
        warmup: Calls of each program that are not timed, first.
        repeats: Rounds in which each is timed.
        seconds: That a program is timed in a round, at least.
        json: A file of one line per figure.
    """
    prepare_torch()
    named = model.create_named()
    if named is None:
        raise InputError(f"{model.weights} are weights; give the name of a model")
    vits = suite.make_variants(workloads.with_random_weights(named), reductions)
    dtype = model.dtype or xla_options.fast_dtype()
    groups = suite.make_case_groups(vits, batch_size, dtype, "train")
    for group in groups:
        for name, case in group.items():
            group[name] = dataclasses.replace(case, run=without_augmentation(case.run))
    rules = timer.Timing(warmup, repeats, seconds)
    suite.time_groups(groups, rules, json, torch_workloads)


def without_augmentation(run):
    """A run whose steps compute nothing but the model: forward, backward, AdamW."""
    augment = dataclasses.replace(run.augment, layers=0, erase_prob=0.0)
    changes = {"mixup": 0.0, "cutmix": 0.0, "ema_decay": 0.0}
    return dataclasses.replace(run, augment=augment, **changes)


def prepare_torch():
    """Make JAX leave memory of the device to PyTorch, before JAX's first use.

    Raises InputError for a missing library.
    """
    for library in ("torch", "timm"):
        try:
            importlib.import_module(library)
        except ImportError as error:
            way_out = extras.install_command("torch")
            text = f"{library} cannot be imported ({error}); {way_out}"
            raise InputError(text) from error
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def torch_workloads(case):
    """{label: Workload} of timm's model of our case's size."""
    macs = TRAINING_MAC_FACTOR * model_macs(case.vit.reduced_model(None))
    timm_workloads = {}
    for variant in VARIANTS:
        call = training_call(case, variant == "torch.compile")
        wait_for_event(call(0))  # compiles
        facts = {"attention": "sdpa", "gelu": "exact", "peak_memory": peak_bytes(call)}
        timm_workloads[f"timm {case.vit.config.name}, {variant}"] = workloads.Workload(
            timer.TimedCall(call, wait_for_event),
            case.batch_size,
            case.batch_size * macs,
            facts,
        )
    return timm_workloads


def training_call(case, compiled):
    """A function of a call's number that starts a training step of timm's model."""
    import torch
    from timm.models.vision_transformer import VisionTransformer

    config = case.vit.config
    fields = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")
    size = {field: getattr(config, field) for field in (*fields, "num_classes")}
    rate = case.run.model.drop_path_rate
    vit = VisionTransformer(img_size=config.image_size, drop_path_rate=rate, **size)
    device = torch_device()
    vit = vit.train().to(device)
    dtype = getattr(torch, case.dtype)
    optimizer = torch.optim.AdamW(vit.parameters(), 1e-4, fused=True)
    run = torch.compile(vit) if compiled else vit
    shape = (case.batch_size, 3, config.image_size, config.image_size)
    images = [torch.randn(shape, device=device) for _ in range(NUM_INPUTS)]
    targets = torch.randn(case.batch_size, config.num_classes, device=device)
    targets = targets.softmax(dim=-1)  # soft labels, as mixup makes them

    def call(number):
        mixed = dtype != torch.float32
        with torch.autocast(device, dtype if mixed else None, enabled=mixed):
            logits = run(images[number % NUM_INPUTS])
        loss = torch.nn.functional.cross_entropy(logits.float(), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return record_event(device)

    return call


def peak_bytes(call):
    """The peak of a GPU's memory in a call; None on a CPU."""
    import torch

    if torch_device() == "cpu":
        return None
    torch.cuda.reset_peak_memory_stats()
    wait_for_event(call(1))
    return torch.cuda.max_memory_allocated()


def torch_device():
    """PyTorch's name of JAX's device; sets JAX's cores and precision."""
    import torch

    torch.set_num_threads(available_cores())
    torch.set_float32_matmul_precision("high")  # TF32 where available, as JAX
    device = "cpu" if jax.devices()[0].platform == "cpu" else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("PyTorch with CUDA is needed, but the installed finds no GPU")
    return device


def record_event(device):
    """The event that ends a call; None on a CPU, where calls are synchronous."""
    import torch

    if device == "cpu":
        return None
    event = torch.cuda.Event()
    event.record()
    return event


def wait_for_event(event):
    if event is not None:
        event.synchronize()


if __name__ == "__main__":
    cli.run_command(main)
