"""What the GPUs of a training step exchange, and the share of it that this takes.

Calculated from a compiled program, not measured: the collectives are those of the
program for one host, their time follows from their bytes.
"""

import collections
import dataclasses

from tools import h200, hlo

GPUS = 8  # of a host
FORWARD, BACKWARD = "forward batch statistics", "backward batch statistics"
KINDS = ("gradients", "metrics", FORWARD, BACKWARD, "mixed images")


@dataclasses.dataclass(frozen=True)
class Links:
    """Rates in one direction, and the time of a collective of no bytes.

    nvlink: of one GPU, bytes/s: 900 GB/s of an H200 are both directions together;
    network: of a whole host to the others, bytes/s; latency_s, network_latency_s: of a
    collective within a host, and what the other hosts add to it (assumed).
    """

    nvlink: float = 450e9
    network: float = 50e9
    latency_s: float = 20e-6
    network_latency_s: float = 50e-6

    def seconds(self, collective, hosts):
        """Time of a hlo.Collective between the 8 GPUs of each of so many hosts.

        All-reduces are rings within the hosts and one between them: the GPUs of a host
        share the sums out, each exchanges its part with the other hosts, and the host's
        GPUs collect the parts. Of all else every byte leaves its host.
        """
        if collective.op == "all-reduce":
            inside = 2 * (GPUS - 1) / GPUS * collective.bytes
            between = 2 * (hosts - 1) / hosts * collective.bytes
        else:
            inside, between = collective.bytes, GPUS * collective.bytes
        seconds = self.latency_s + inside / self.nvlink
        if hosts > 1:
            seconds += self.network_latency_s + between / self.network
        return seconds


def kinds(collective):
    """What a hlo.Collective of a training step holds: some of `KINDS`, in their order.

    The statistics of a batch norm are the mean and the mean square, [2, channels].
    """
    if collective.op == "collective-permute":
        return ("mixed images",)
    found = set()
    for part in collective.parts:
        if "/norm_" in part.source and "[2," in part.shape:
            found.add(BACKWARD if "transpose(" in part.source else FORWARD)
        else:
            found.add("metrics" if "[]" in part.shape else "gradients")
    return tuple(kind for kind in KINDS if kind in found)


def inventory(text):
    """Markdown: the collectives of a compiled step, a row for each kind of content."""
    rows = collections.defaultdict(list)
    for collective in hlo.collectives(text):
        rows[collective.op, kinds(collective)].append(collective)
    lines = [
        "| what | collective | number | arrays | bytes each |",
        "|---|---|---|---|---|",
    ]
    for (op, found), group in rows.items():
        arrays = sum(len(collective.parts) for collective in group)
        sizes = ", ".join(f"{collective.bytes:,}" for collective in group)
        lines.append(
            f"| {', '.join(found)} | {op} | {len(group)} | {arrays} | {sizes} |"
        )
    return "\n".join(lines)


def step_seconds(text):
    """The guessed time of a step without its collectives."""
    return sum(map(h200.guess, hlo.kernels(text)))


PLAN_HEADING = (
    "| config | images a GPU | hosts of 8 | images a step | step, ms | collectives, ms "
    "| share | images/s | times one host |\n|---|---|---|---|---|---|---|---|---|"
)


def plan(name, text, images, hosts, links):
    """Markdown rows, one for each of `hosts`: a program of `images` images a GPU."""
    compute, rows = step_seconds(text), []
    exchanged = {n: _exchange(text, n, links) for n in {1, *hosts}}
    alone = GPUS * images / (compute + exchanged[1])
    for count in hosts:
        total, batch = compute + exchanged[count], count * GPUS * images
        rows.append(
            f"| {name} | {images} | {count} | {batch:,} | {1e3 * compute:.2f} "
            f"| {1e3 * exchanged[count]:.2f} | {exchanged[count] / total:.0%} "
            f"| {batch / total:,.0f} | {batch / total / alone:.2f} |"
        )
    return "\n".join(rows)


def _exchange(text, hosts, links):
    return sum(links.seconds(c, hosts) for c in hlo.collectives(text))
