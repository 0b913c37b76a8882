"""Kernels of a compiled GPU program.

In the text of XLA's optimized program (`compiled.as_text()`) every instruction of the
entry is one kernel, except views. Nothing is run.
"""

import re
from typing import NamedTuple

VIEWS = {"parameter", "constant", "bitcast", "tuple", "get-tuple-element", "after-all"}
MOVES = VIEWS | {"copy", "transpose", "reshape", "slice", "pad", "concatenate"}
MOVES |= {"broadcast", "iota", "convert"}
# Parts of library calls' names, and the kinds of their kernels.
LIBRARIES = {"fmha": "attention", "cublas": "gemm", "conv": "convolution"}

_INSTRUCTION = re.compile(
    r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\(.*?\)(?:,|$)"
)
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{$")


class GpuKernel(NamedTuple):
    """One launch of a kernel."""

    name: str
    # "gemm", "attention", "convolution", "custom" (a call to other code), "move" (a
    # fusion that only copies, casts or rearranges) or "fusion".
    kind: str
    shape: str
    source: str  # the line of the model behind it


class _Instruction(NamedTuple):
    name: str
    shape: str
    op: str
    line: str

    def find(self, pattern):
        """Return the first group of `pattern` in the line, or ""."""
        match = re.search(pattern, self.line)
        return match[1] if match else ""


def list_kernels(text):
    """Return the GpuKernels of a compiled program's text, in the order of their launch.

    A loop's body counts once for each known iteration, or once; a conditional counts
    its branch with most kernels.
    """
    entry, computations = _parse_computations(text)
    return _list_launches(computations[entry], computations)


def _parse_computations(text):
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
            current.append(_Instruction(*match.groups(), line=line))
    return entry, computations


def _list_launches(body, computations):
    """The GpuKernels of a computation's instructions, in the order of their launch."""
    launches = []
    for instr in body:
        if instr.op in VIEWS or instr.op.endswith("-done"):  # the end of a -start
            continue
        called = [name for name in _called_computations(instr) if name in computations]
        if instr.op in ("call", "async-start", "while", "conditional"):
            bodies = [computations[name] for name in called]
            parts = [_list_launches(inner, computations) for inner in bodies]
            if parts:
                times = instr.find(r'"known_trip_count":\{"n":"(\d+)"')
                launches += max(parts, key=len) * int(times or 1)
            continue
        fused = computations[called[0]] if instr.op == "fusion" and called else [instr]
        source = instr.find(r'op_name="([^"]+)"')
        kind = _kernel_kind(instr, fused)
        launches.append(GpuKernel(instr.name, kind, instr.shape, source))
    return launches


def _called_computations(instr):
    """Return the names of the computations that an instruction runs."""
    listed = instr.find(r"branch_computations=\{([^}]*)\}")
    single = r"(?:calls|body|to_apply|_computation)=%?([\w.\-]+)"
    return re.findall(r"[\w.\-]+", listed) + re.findall(single, instr.line)


def _kernel_kind(instr, fused):
    """The kind of an instruction's kernel; fused: the instructions of a fusion."""
    ops = {part.op for part in fused}
    if "dot" in ops:
        return "gemm"
    target = instr.find(r'custom_call_target="([^"]+)"')
    for part, kind in LIBRARIES.items():
        if target.startswith("__cu") and part in target:
            return kind
    if instr.op == "custom-call":
        return "custom"
    return "move" if ops <= MOVES else "fusion"
