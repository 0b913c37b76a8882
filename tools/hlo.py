"""Kernels and collectives of a compiled GPU program, with their bytes and FLOPs.

Reads the text of XLA's optimized program (`compiled.as_text()`): every instruction of
its entry that is not a view is one kernel or one collective. Nothing is run.
"""

import collections
import dataclasses
import itertools
import math
import re

ITEMSIZE = {
    **dict.fromkeys(("f64", "s64", "u64"), 8),
    **dict.fromkeys(("bf16", "f16", "s16", "u16"), 2),
    **dict.fromkeys(("s8", "u8", "pred"), 1),
}  # all other types have 4 bytes
VIEWS = {"parameter", "constant", "bitcast", "tuple", "get-tuple-element", "after-all"}
MOVES = VIEWS | {"copy", "transpose", "reshape", "slice", "pad", "concatenate"}
MOVES |= {"broadcast", "iota", "convert"}
TILE = 64  # tokens that fused attention computes at once
BACKWARD = 2.5  # products of its backward pass per product of the forward: 5 to 2

COLLECTIVES = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all"),
    *("collective-permute", "collective-broadcast"),
)
HOST_OPS = {"infeed", "outfeed", "send", "recv"}

_INSTRUCTION = re.compile(
    r"\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)(?:,|$)"
)
_SOURCE = r'op_name="([^"]+)"'
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{$")


@dataclasses.dataclass(frozen=True)
class GpuKernel:
    """One launch of a kernel."""

    name: str
    # "gemm", "attention", "convolution", "custom" (a call to other code), "move" (a
    # fusion that only copies, casts or rearranges) or "fusion".
    kind: str
    op: str  # the library call, or the kind of fusion
    shape: str
    bytes: int  # read and written
    flops: float  # of products, two a multiply-add; in full tiles for attention
    source: str  # the line of the model behind it


@dataclasses.dataclass(frozen=True)
class Part:
    """One array of a collective: its shape, and the line of the model behind it."""

    shape: str
    source: str


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective between devices: one call of NCCL on a GPU."""

    name: str
    op: str  # "all-reduce", "collective-permute", ..
    bytes: int  # the input of one device
    devices: int  # the size of a group
    parts: tuple[Part, ...]  # the arrays that XLA has combined in it
    source: str


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    op: str
    operands: tuple[str, ...]
    inside: str  # the text in parentheses
    line: str

    def find(self, pattern):
        """Return the first group of `pattern` in the line, or ""."""
        match = re.search(pattern, self.line)
        return match[1] if match else ""


def kernels(text):
    """Return the GpuKernels of a compiled program's text, in the order of their launch.

    The body of a loop counts as often as it runs if XLA knows that, else once; of a
    conditional the branch with most bytes counts.
    """
    return [k for k in _program(text) if isinstance(k, GpuKernel)]


def collectives(text):
    """Return the Collectives of a compiled program's text, in the order of their start.

    Those in loops and branches count as in `kernels`; an asynchronous collective counts
    at its start.
    """
    return [c for c in _program(text) if isinstance(c, Collective)]


def _program(text):
    entry, computations = _parse(text)
    return _launches(computations[entry], computations)


def host_waits(text):
    """Return the instructions at which the device waits for the host.

    Transfers, calls of Python, and loops and branches that the host decides: those
    whose trip count XLA does not know.
    """
    waits = []
    for i in itertools.chain.from_iterable(_parse(text)[1].values()):
        op = i.op.removesuffix("-start")
        called = i.find(r'custom_call_target="([^"]+)"').lower()
        undecided = op == "while" and not i.find(r'"known_trip_count":\{"n":"(\d+)"')
        calls_host = "callback" in called or "host" in called
        if op in HOST_OPS or op == "conditional" or undecided or calls_host:
            waits.append(f"{i.op} {i.name} {i.find(_SOURCE)}".rstrip())
    return waits


def _parse(text):
    """Return (name of the entry, {computation: its instructions})."""
    entry = None
    current = None
    computations = {}
    for line in text.splitlines():
        header = None if line.startswith(" ") else _HEADER.match(line)
        if header:
            current = []
            computations[header[2]] = current
            entry = header[2] if header[1] else entry
            continue
        match = _INSTRUCTION.match(line)
        if match and current is not None:
            _, name, shape, op, inside = match.groups()
            names = tuple(re.findall(r"%([\w.\-]+)", inside))
            current.append(_Instruction(name, shape, op, names, inside, line))
    return entry, computations


def _launches(body, computations):
    """The GpuKernels and Collectives of a computation, in the order of their launch.

    body: its instructions
    computations: {name: instructions} of the program
    """
    shapes = {i.name: i.shape for i in body}
    launches = []
    for i in body:
        if i.op in VIEWS or i.op.endswith("-done"):  # the end of a -start
            continue
        if i.op.removesuffix("-start") in COLLECTIVES:
            launches.append(_collective(i, body, computations))
            continue
        called = [name for name in _called(i) if name in computations]
        if i.op in ("call", "async-start", "while", "conditional"):
            parts = [_launches(computations[name], computations) for name in called]
            if parts:
                most = max(parts, key=lambda part: sum(k.bytes for k in part))
                times = i.find(r'"known_trip_count":\{"n":"(\d+)"')
                launches += most * int(times or 1)
            continue
        fused = computations[called[0]] if i.op == "fusion" and called else None
        launches.append(_kernel(i, fused, shapes))
    return launches


def _called(i):
    """Return the names of the computations that an instruction runs."""
    listed = i.find(r"branch_computations=\{([^}]*)\}")
    single = re.findall(r"(?:calls|body|to_apply|_computation)=%?([\w.\-]+)", i.line)
    return re.findall(r"[\w.\-]+", listed) + single


def _kernel(i, fused, shapes):
    """The GpuKernel of an instruction.

    fused: the instructions of a fusion; None for any other
    shapes: {name: shape} of the instructions beside it
    """
    target = i.find(r'custom_call_target="([^"]+)"')
    library = target.startswith("__cu")  # cuBLAS, cuDNN: with workspaces
    product = next((f for f in fused or () if f.op == "dot"), None)
    if fused:
        read = _bytes_read(fused)
    else:
        sizes = {name: _elements(shapes.get(name, "")) for name in i.operands}
        wanted = _wanted(i, _elements(i.shape), sizes | {i.name: _elements(i.shape)})
        read = sum(n * _itemsize(shapes.get(name, "")) for name, n in wanted.items())
    if product:
        inner = {f.name: f.shape for f in fused}
        flops = _product_flops([inner[name] for name in product.operands], product)
    else:
        flops = _call_flops(target, [shapes.get(name, "") for name in i.operands], i)
    return GpuKernel(
        name=i.name,
        kind="gemm" if product else _kind(i, target, fused),
        op=target or i.find(r"kind=(\w+)") or i.op,
        shape=i.shape,
        bytes=round(read) + _bytes(i.shape, without_workspace=library),
        flops=flops,
        source=i.find(_SOURCE),
    )


def _collective(i, body, computations):
    """The Collective of an instruction."""
    by_name = {other.name: other for other in body}
    parts = []
    for name in i.operands:
        parts += _parts(name, by_name, computations)
    source = i.find(_SOURCE)
    return Collective(
        name=i.name,
        op=i.op.removesuffix("-start"),
        bytes=sum(_bytes(by_name[name].shape) for name in i.operands),
        devices=_group(i),
        parts=tuple(Part(p.shape, source or p.find(_SOURCE)) for p in parts),
        source=source,
    )


def _parts(name, by_name, computations):
    """Return the instructions whose results make up an operand, without views."""
    i = by_name[name]
    while i.op in ("bitcast", "reshape") and i.operands[0] in by_name:
        i = by_name[i.operands[0]]
    fused = computations.get(i.find(r"calls=%?([\w.\-]+)"), ())
    joined = "concatenate" in (i.op, *(f.op for f in fused[-1:]))
    if joined and not i.find(_SOURCE):  # joined by XLA, not by the model
        parts = []
        for operand in i.operands:
            parts += _parts(operand, by_name, computations)
        return parts
    return [i]


def _group(i):
    """Return the number of devices in a group."""
    listed = i.find(r"replica_groups=\{\{([\d,]+)\}")
    if listed:
        return len(listed.split(","))
    named = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", i.line)
    if named:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"\w+", named[2]))
    iota = i.find(r"replica_groups=\[\d+,(\d+)\]")
    pairs = i.find(r"source_target_pairs=\{(.*?\})\}")
    return int(iota or pairs.count("{"))


def _kind(i, target, fused):
    """The kind of a GpuKernel without a product of its own."""
    for part, kind in (
        ("fmha", "attention"),
        ("cublas", "gemm"),
        ("conv", "convolution"),
    ):
        if target.startswith("__cu") and part in target:
            return kind
    if i.op == "custom-call":
        return "custom"
    ops = {f.op for f in fused} if fused else {i.op}
    return "move" if ops <= MOVES else "fusion"


# Shapes


def _arrays(shape):
    """[(type, lengths)] of an array or a tuple of arrays."""
    arrays = re.findall(r"(\w+)\[([\d,]*)\]", shape)
    return [(kind, [int(n) for n in dims.split(",") if n]) for kind, dims in arrays]


def _bytes(shape, without_workspace=False):
    """Bytes of all arrays of a shape; workspaces are int8 arrays beside the results."""
    arrays = _arrays(shape)
    if without_workspace and len(arrays) > 1:
        arrays = [(kind, dims) for kind, dims in arrays if kind not in ("s8", "u8")]
    return sum(ITEMSIZE.get(kind, 4) * math.prod(dims) for kind, dims in arrays)


def _elements(shape):
    return sum(math.prod(dims) for _, dims in _arrays(shape))


def _itemsize(shape):
    return _bytes(shape) / max(1, _elements(shape))


# Bytes read


def _bytes_read(fused):
    """Bytes of its parameters that a fusion reads, each of them at most once.

    Only the selected part of a sliced or gathered array counts, through any
    views, casts and sums in between: followed from the result backwards.
    """
    sizes = {i.name: _elements(i.shape) for i in fused}
    needed = collections.Counter({fused[-1].name: sizes[fused[-1].name]})
    total = 0
    for i in reversed(fused):  # users follow what they use
        elements = min(needed[i.name], sizes[i.name])
        if i.op == "parameter":
            total += elements * _itemsize(i.shape)
        else:
            needed.update(_wanted(i, elements, sizes))
    return total


def _wanted(i, elements, sizes):
    """Elements of each operand that `elements` of the result depend on."""
    share = elements / max(1, sizes[i.name])
    wanted = {name: share * sizes.get(name, 0) for name in i.operands}
    if i.op in ("slice", "gather", "dynamic-slice", "broadcast"):
        first = i.operands[0]
        wanted[first] = min(sizes.get(first, 0), elements)
    return wanted


# FLOPs


def _product_flops(shapes, out):
    """FLOPs of [.., M, K] times [.., K, N], in any order of the axes."""
    a, b = (_elements(shape) for shape in shapes[:2])
    _, dims = _arrays(out.shape)[0]
    batch = max(1, math.prod(dims[:-2]))
    return 2 * math.sqrt(a * b * math.prod(dims) / batch)


def _call_flops(target, operands, i):
    """FLOPs of library calls that multiply; 0 for all other calls."""
    if not target.startswith("__cu"):
        return 0.0
    if "fmha" in target:
        batch, heads, tokens, width = _arrays(i.shape)[0][1][:4]
        tiles = -(-tokens // TILE) * TILE
        passes = BACKWARD if "Backward" in target else 1
        return passes * 4.0 * batch * heads * tiles**2 * width
    if "cublas" in target:
        return _product_flops(operands, i)
    if "conv" in target:
        return _convolution_flops(target, operands, i)
    return 0.0


def _convolution_flops(target, operands, i):
    """A multiply-add per output value and kernel weight of one output channel."""
    shapes = [_arrays(shape)[0][1] for shape in (*operands[:2], i.shape)]
    # The positions of the kernel and of the forward pass's output among left, right and
    # result: the gradient of each is computed from the other two.
    kernel = 1
    output = 2
    if "BackwardInput" in target:
        kernel = 1
        output = 0
    elif "BackwardFilter" in target:
        kernel = 2
        output = 1
    labels = re.split("_|->", i.find(r"dim_labels=([\w>\-]+)"))
    labels = next(axes for axes in labels if "o" in axes)  # the kernel's
    channels = shapes[kernel][labels.index("o")]
    return 2.0 * math.prod(shapes[output]) * math.prod(shapes[kernel]) / channels
