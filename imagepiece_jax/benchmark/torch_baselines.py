"""How fast is PyTorch on the same device? timm's model of the same size, and ToMe.

Each is timed as written and under torch.compile: in inference with weights of the
benchmark's dtype and fused attention, in training under automatic mixed precision with
fused AdamW. They take turns with ours in one process, so rates are ratios of one run.
"""

import importlib
import os
import time

from imagepiece_jax.benchmark import device
from imagepiece_jax.benchmark.timer import Job
from imagepiece_jax.benchmark.workloads import INPUTS, TRAINING_MACS, Workload
from imagepiece_jax.errors import InputError
from imagepiece_jax.models import registry

NAMES = ("timm", "tome")
LIBRARIES = ("torch", "timm")
R = 13  # tokens that ToMe merges in a block: its setting for this size of model
WAYS = ("eager", "torch.compile")


def prepare(names):
    """Before JAX is used: InputError where a name or library is not there.

    Both libraries then share the device's memory.
    """
    for name in names:
        if name not in NAMES:
            raise InputError(f"--against is {name!r}; allowed are {', '.join(NAMES)}")
    for library in LIBRARIES:
        try:
            importlib.import_module(library)
        except ImportError as error:
            raise InputError(
                f"--against needs {library}, which cannot be imported ({error}): pip "
                "install '.[torch]'"
            ) from error
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def workloads(names, subjects, mode):
    """{label: Workload} in `mode`, one of each size that is among `subjects`.

    Modes other than "inference" and "train" have none; ToMe is not trained.
    """
    sizes = {_size(subject): subject for subject in reversed(subjects)}
    found = {}
    for size, subject in reversed(sizes.items()):
        model = subject.config.model.name
        for way in WAYS:
            if mode == "inference" and "timm" in names:
                found[f"timm {model}, {way}"] = _infer(size, subject, way)
            if mode == "inference" and "tome" in names:
                label = f"ToMe r={R} on timm {model}, {way}"
                found[label] = _infer(size, subject, way, R)
            if mode == "train" and "timm" in names:
                found[f"timm {model}, {way}"] = _train(size, subject, way)
    return found


def _size(subject):
    """What makes two models of timm the same, as its constructor's arguments."""
    model, config = subject.model, subject.config
    fields = ("patch_size", "embed_dim", "num_heads", "mlp_ratio", "num_classes")
    size = {field: getattr(model, field) for field in fields}
    size |= {"img_size": config.image_size, "depth": len(model.plan)}
    return tuple(size.items())


def _model(size, **options):
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(**dict(size), **options)


def _infer(size, subject, way, r=0):
    import torch

    from imagepiece_jax.benchmark import torch_tome

    where, dtype = _place(), getattr(torch, subject.config.model.dtype)
    vit = _model(size).eval().to(where, dtype)

    def forward(images):
        return torch_tome.forward(vit, images, r) if r else vit(images)

    run = torch.compile(forward) if way == "torch.compile" else forward
    shape = (subject.batch_size, 3, *subject.shape[1:3])
    images = [torch.randn(shape, device=where, dtype=dtype) for _ in range(INPUTS)]

    def call(number):
        with torch.inference_mode():
            run(images[number % INPUTS])
        return _mark(where)

    reduction = {"name": "tome", "r": R} if r else None
    return _workload(subject, call, _macs(subject, reduction), way, where)


def _train(size, subject, way):
    import torch

    config, where = subject.config, _place()
    rate = config.model.drop_path_rate
    vit = _model(size, drop_path_rate=rate).train().to(where)
    dtype = getattr(torch, config.model.dtype)
    optimizer = torch.optim.AdamW(vit.parameters(), 1e-4, fused=True)
    run = torch.compile(vit) if way == "torch.compile" else vit
    shape = (subject.batch_size, 3, *subject.shape[1:3])
    images = [torch.randn(shape, device=where) for _ in range(INPUTS)]
    targets = torch.randn(subject.batch_size, config.num_classes, device=where)
    targets = targets.softmax(dim=-1)  # soft labels, as mixup makes them

    def call(number):
        mixed = dtype != torch.float32
        with torch.autocast(where, dtype if mixed else None, enabled=mixed):
            logits = run(images[number % INPUTS])
        loss = torch.nn.functional.cross_entropy(logits.float(), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return _mark(where)

    macs = TRAINING_MACS * _macs(subject, None)
    return _workload(subject, call, macs, way, where)


def _place():
    """The device of JAX, as PyTorch calls it; its cores and precision as JAX's."""
    import torch

    torch.set_num_threads(device.cores())
    torch.set_float32_matmul_precision("high")  # TF32 where there is one, as JAX
    where = "cpu" if device.platform() == "cpu" else "cuda"
    if where == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "--against needs PyTorch with CUDA here, and the one that is installed "
            "finds no GPU: install that, or choose --device cpu"
        )
    return where


def _mark(where):
    """What `_wait` blocks on; on a CPU nothing, for a call ends when it is done."""
    import torch

    if where == "cpu":
        return None
    event = torch.cuda.Event()
    event.record()
    return event


def _wait(event):
    if event is not None:
        event.synchronize()


def _macs(subject, reduction):
    fields = subject.config.model.to_dict() | {"stem": "patch"}
    sizes = {"image_size": subject.config.image_size}
    sizes["num_classes"] = subject.config.num_classes
    model = registry.create_model(reduction=reduction, **sizes, **fields)
    return registry.model_macs(model, subject.config.image_size)


def _workload(subject, call, macs, way, where):
    """Compiled by a first call; the memory is that of the second."""
    import torch

    began = time.perf_counter()
    _wait(call(0))
    compile_s = time.perf_counter() - began if way == "torch.compile" else None
    peak = None
    if where == "cuda":
        torch.cuda.reset_peak_memory_stats()
        _wait(call(1))
        peak = torch.cuda.max_memory_allocated()
    facts = {
        "attention": "sdpa",
        "kernels": "plain",
        "gelu": "exact",
        "stem": "patch",
    }
    facts |= {"compile_s": compile_s, "peak_memory": peak}
    images, ahead = subject.batch_size, 0 if where == "cpu" else device.AHEAD
    return Workload(Job(call, _wait, ahead), images, images * macs, facts)
