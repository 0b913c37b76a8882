"""Rules that count the image tokens a step leaves, in plain arithmetic."""

import dataclasses
import math


def ceil(x):
    """Ceiling that binary rounding cannot change: 0.07 * 100 is 7, not 8."""
    return math.ceil(x - 1e-9)


def floor(x):
    """Floor that binary rounding cannot change: 0.7 * 90 is 63, not 62."""
    return math.floor(x + 1e-9)


class Rule:
    """Base of the counting rules, which are frozen dataclasses."""

    def n_out(self, n: int, n0: int, stage: int) -> int | None:
        """Image tokens after the step; None where it changes nothing.

        n: image tokens before it; n0: before any step; stage: its number among the
        steps that change something, from 1.
        """
        raise NotImplementedError

    def fewest(self, n: int, stage: int) -> int:
        """Fewest of `n` tokens that the step could leave, with the same reducer."""
        return 1

    def candidates(self, n: int) -> int | None:
        """Tokens among which a merge looks for pairs; None: all, or it merges none."""
        return None


class Matching(Rule):
    """Base of rules of merges in pairs, of which at most one of two sides can leave."""

    def removed(self, n: int) -> int:
        """How many of `n` tokens are to leave, where so many can."""
        raise NotImplementedError

    def n_out(self, n, n0, stage):
        removed = min(self.removed(n), self.half(n))
        return None if removed <= 0 else n - removed

    def fewest(self, n, stage):
        return n - self.half(n)

    def half(self, n):
        """Tokens of the smaller side."""
        candidates = self.candidates(n)
        if candidates is None:
            candidates = n
        return candidates // 2


@dataclasses.dataclass(frozen=True)
class Keep(Rule):
    """ceil(rate * n) tokens stay, at least 1; `fused` adds one that sums the others."""

    rate: float
    fused: bool = False

    def n_out(self, n, n0, stage):
        count = max(1, ceil(self.rate * n))
        if count == n:
            return None
        return count + 1 if self.fused else count

    def fewest(self, n, stage):
        return 2 if self.fused else 1


@dataclasses.dataclass(frozen=True)
class KeepInitial(Rule):
    """floor(rate * n0) tokens stay, at least 1; `packages` adds one for each stage."""

    rate: float
    packages: bool = False

    def n_out(self, n, n0, stage):
        count = max(1, floor(self.rate * n0))
        if self.packages:
            count += stage
        return None if count >= n else count

    def fewest(self, n, stage):
        return 1 + stage if self.packages else 1


@dataclasses.dataclass(frozen=True)
class Remove(Matching):
    """`count` tokens fewer, at most half of all."""

    count: int

    def removed(self, n):
        return self.count


@dataclasses.dataclass(frozen=True)
class MergeTo(Matching):
    """As many tokens as `Keep(rate)`, but at most half of all are merged away."""

    rate: float

    def removed(self, n):
        return n - max(1, ceil(self.rate * n))


@dataclasses.dataclass(frozen=True)
class Merge(Matching):
    """ImagePiece's merges, among the floor(candidate_ratio * n) least attended tokens.

    ceil(merge_ratio * (n + 1)) of them: the class token counts in the published
    arithmetic, 197 tokens merge by 16; with base="candidates" the same share of the
    candidates.
    """

    merge_ratio: float
    candidate_ratio: float
    base: str = "all"

    def candidates(self, n):
        return floor(self.candidate_ratio * n)

    def removed(self, n):
        base = n + 1
        if self.base == "candidates":
            base = self.candidates(n)
        return ceil(self.merge_ratio * base)


@dataclasses.dataclass(frozen=True)
class Fixed(Rule):
    """`tokens`, independently of n."""

    tokens: int

    def n_out(self, n, n0, stage):
        return self.tokens
