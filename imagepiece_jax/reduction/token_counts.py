"""Rules for how many image tokens a step leaves, in plain arithmetic."""

import dataclasses
import math


def ceil(x):
    """Ceiling that binary rounding cannot change: 0.07 * 100 is 7, not 8."""
    return math.ceil(x - 1e-9)


def floor(x):
    """Floor that binary rounding cannot change: 0.7 * 90 is 63, not 62."""
    return math.floor(x + 1e-9)


class Rule:
    """Base of counting rules, which are frozen dataclasses."""

    def n_out(self, n: int, n0: int, stage: int) -> int | None:
        """Number of image tokens after the step; None where all of them stay.

        n: number of image tokens before the step
        n0: number of image tokens before the first step
        stage: number of this step among those that reduce tokens, from 1
        """
        raise NotImplementedError

    def fewest(self, n: int, stage: int) -> int:
        """The fewest of `n` tokens that a list of `counts` may leave at this step."""
        return 1

    def candidates(self, n: int) -> int | None:
        """Number of tokens among which a merge looks for pairs; None: all tokens."""
        return None


class AtMostHalf(Rule):
    """Base of rules for merges in pairs, in which at most half of the tokens leave."""

    def removed(self, n: int) -> int:
        """How many of `n` tokens should leave, even if it is more than half."""
        raise NotImplementedError

    def n_out(self, n, n0, stage):
        removed = min(self.removed(n), self.half(n))
        return None if removed <= 0 else n - removed

    def fewest(self, n, stage):
        return n - self.half(n)

    def half(self, n):
        """The most tokens that can leave: half of the candidates."""
        candidates = self.candidates(n)
        if candidates is None:
            candidates = n
        return candidates // 2


@dataclasses.dataclass(frozen=True)
class Keep(Rule):
    """ceil(rate * n) tokens stay, at least 1."""

    rate: float
    fused: bool = False  # whether one more token is the sum of those that leave

    def n_out(self, n, n0, stage):
        count = max(1, ceil(self.rate * n))
        if count == n:
            return None
        return count + 1 if self.fused else count

    def fewest(self, n, stage):
        return 2 if self.fused else 1


@dataclasses.dataclass(frozen=True)
class KeepInitial(Rule):
    """floor(rate * n0) tokens stay, at least 1."""

    rate: float
    packages: bool = False  # whether each step so far has added one more token

    def n_out(self, n, n0, stage):
        count = max(1, floor(self.rate * n0))
        if self.packages:
            count += stage
        return None if count >= n else count

    def fewest(self, n, stage):
        return 1 + stage if self.packages else 1


@dataclasses.dataclass(frozen=True)
class Remove(AtMostHalf):
    """`count` tokens leave, or half of all where that is less."""

    count: int

    def removed(self, n):
        return self.count


@dataclasses.dataclass(frozen=True)
class MergeTo(AtMostHalf):
    """As many tokens leave as by `Keep(rate)`, or half of all where that is less."""

    rate: float

    def removed(self, n):
        return n - max(1, ceil(self.rate * n))


@dataclasses.dataclass(frozen=True)
class Merge(AtMostHalf):
    """ImagePiece's rule: tokens merge among the floor(candidate_ratio * n) candidates.

    ceil(merge_ratio * (n + 1)) tokens leave: the published arithmetic counts the class
    token, so that 16 of 197 tokens leave.
    """

    merge_ratio: float
    candidate_ratio: float

    def candidates(self, n):
        return floor(self.candidate_ratio * n)

    def removed(self, n):
        return ceil(self.merge_ratio * (n + 1))


@dataclasses.dataclass(frozen=True)
class Fixed(Rule):
    """`tokens` tokens stay, whatever n is."""

    tokens: int

    def n_out(self, n, n0, stage):
        return self.tokens
