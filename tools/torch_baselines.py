"""timm's model of the same size beside ours, on the same device.

python -m tools.torch_baselines deit_s --reductions 0.6

The other words are `imagepiece benchmark`'s, which runs beside.

timm's model is timed eager and under torch.compile: in inference with weights of the
benchmark's dtype and fused attention, in training under automatic mixed precision with
fused AdamW. It takes turns with our programs in one process, so every ratio comes from
one run.
"""

import dataclasses
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

VARIANTS = ("eager", "torch.compile")


def main(
    model: Model,
    *,
    reductions: tuple[str, ...] = (),
    batch_size: tuple[int, ...] = (256,),
    mode: Literal["inference", "train"] = "inference",
    plain: bool = False,
    warmup: int = timer.Timing.warmup,
    repeats: int = timer.Timing.repeats,
    seconds: float = timer.Timing.seconds,
    json: str | None = None,
):
    """Time the model of a name, dense and with reductions, beside timm's.

    Args:
        reductions: Shares of the dense model's MACs, or methods.
        batch_size: One or more.
        mode: Forward passes, or steps of training.
        plain: Training steps without augmentation and averages of the weights.
        warmup: Calls of each program that are not timed, first.
        repeats: Rounds in which each is timed.
        seconds: That a program is timed in a round, at least.
        json: A file of one line per figure.
    """
    prepare_torch()
    named = model.create_named()
    if named is None:
        raise InputError(f"{model.weights} are weights; give the name of a model")
    forms = suite.make_variants(ours.with_random_weights(named), reductions)
    dtype = model.dtype or xla_options.fast_dtype()
    groups = suite.make_case_groups(forms, batch_size, dtype, mode)
    if plain:
        for group in groups:
            for name, case in group.items():
                run = without_augmentation(case.run)
                group[name] = dataclasses.replace(case, run=run)
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


def torch_workloads(cases):
    """{label: Workload} of timm's model; our `cases` are of its size and one mode."""
    case, *_ = cases
    make_call = {"inference": _inference_call, "train": _training_call}[case.mode]
    macs = case.batch_size * model_macs(case.vit.reduced_model(None))
    if case.mode == "train":
        macs *= TRAINING_MAC_FACTOR
    workloads = {}
    for variant in VARIANTS:
        call = make_call(case, variant == "torch.compile")
        wait_for_event(call(0))  # compiles
        facts = {"attention": "sdpa", "gelu": "exact", "peak_memory": _peak_bytes(call)}
        timed_call = timer.TimedCall(call, wait_for_event)
        workload = Workload(timed_call, case.batch_size, macs, facts)
        workloads[f"timm {case.vit.config.name}, {variant}"] = workload
    return workloads


def _peak_bytes(call):
    """The peak of a GPU's memory in a call; None on a CPU."""
    import torch

    if torch_device() == "cpu":
        return None
    torch.cuda.reset_peak_memory_stats()
    wait_for_event(call(1))
    return torch.cuda.max_memory_allocated()


def _images_shape(case):
    """Shape of a batch in PyTorch's order, [batch, 3, S, S]."""
    side = case.vit.image_size
    return case.batch_size, 3, side, side


def _timm_model(case, **options):
    from timm.models.vision_transformer import VisionTransformer

    config = case.vit.config
    fields = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")
    size = {field: getattr(config, field) for field in (*fields, "num_classes")}
    return VisionTransformer(img_size=config.image_size, **size, **options)


def _inference_call(case, compiled):
    return inference_call(_timm_model(case), _images_shape(case), case.dtype, compiled)


def inference_call(vit, shape, dtype, compiled, mode=None):
    """A function of a call's number that starts timm's `vit` on noise.

    shape: of images, [B, 3, H, W]
    mode: of torch.compile
    """
    import torch

    device = torch_device()
    dtype = getattr(torch, dtype)
    run = vit.eval().to(device, dtype)
    if compiled:
        # All models' `forward` share the limit; beyond it torch runs them eager.
        torch._dynamo.config.recompile_limit = 1000
        run = torch.compile(run, dynamic=False, mode=mode)
    images = [torch.randn(shape, device=device, dtype=dtype) for _ in range(NUM_INPUTS)]

    def call(number):
        with torch.inference_mode():
            run(images[number % NUM_INPUTS])
        return _record_event(device)

    return call


def _training_call(case, compiled):
    """A function of a call's number that starts a training step of timm's model."""
    import torch

    device = torch_device()
    rate = case.run.model.drop_path_rate
    vit = _timm_model(case, drop_path_rate=rate).train().to(device)
    dtype = getattr(torch, case.dtype)
    optimizer = torch.optim.AdamW(vit.parameters(), 1e-4, fused=True)
    run = torch.compile(vit) if compiled else vit
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

    return call


def torch_device():
    """PyTorch's name of JAX's device; sets JAX's cores and precision."""
    import torch

    torch.set_num_threads(available_cores())
    torch.set_float32_matmul_precision("high")  # TF32 where available, as JAX
    device = "cpu" if jax.devices()[0].platform == "cpu" else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("PyTorch with CUDA is needed, but the installed finds no GPU")
    return device


def _record_event(device):
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
