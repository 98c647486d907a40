"""When to try again: a message that was deferred, and a lane that cannot be connected.

A deferred message waits exponentially longer until it expires: at the end of its time, which its
ledger row has, or after so many attempts that 4 to 5 days have passed (RFC 5321 §4.5.4.1). The wait
is jittered, so that what was deferred together does not come back together. A greylister wants to
be asked again soon (RFC 6647 §4.2: a few minutes), so its first two refusals wait shortly, never
longer than others. A lane whose connections fail one after another pauses as a whole: its messages
are not touched, no attempt of theirs is used up.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class RetryPolicy:
    """Of a deferred message. The defaults end after 4 to 5 days.

    ``jitter`` is the greatest part by which a wait is shortened or lengthened.
    """

    first_wait_s: float = 20 * 60.0
    factor: float = 2.0
    wait_s_max: float = 4 * 3600.0
    jitter: float = 0.25
    attempts_max: int = 32
    greylisted_wait_s: float = 5 * 60.0
    greylisted_attempts: int = 2  # so many wait so; who refuses again is no usual greylister

    def __post_init__(self) -> None:
        if not (
            0 < self.first_wait_s <= self.wait_s_max
            and self.factor >= 1
            and 0 <= self.jitter < 1
            and self.attempts_max >= 1
        ):
            raise ValueError(
                f"{self}: expected 0 < first_wait_s <= wait_s_max, factor >= 1, 0 <= jitter < 1, "
                "attempts_max >= 1"
            )

    def wait_s(self, attempts: int, random: Random, *, is_greylisted: bool = False) -> float | None:
        """Seconds until the next try of a message that has been tried ``attempts`` (≥ 1) times.

        ``None``: it has been tried often enough.
        """
        if attempts >= self.attempts_max:
            return None
        if is_greylisted and attempts <= self.greylisted_attempts:
            wait_s = min(self.greylisted_wait_s, self.first_wait_s)
            return jittered(wait_s, self.jitter, random)
        doublings = min(attempts - 1, 64)
        wait_s = min(self.first_wait_s * self.factor**doublings, self.wait_s_max)
        return jittered(wait_s, self.jitter, random)


@dataclass(frozen=True)
class BackoffPolicy:
    """Of a lane whose connections fail. The first failures wait shortly: most pass at once."""

    first_wait_s: float = 1.0
    factor: float = 2.0
    wait_s_max: float = 300.0
    jitter: float = 0.25


@dataclass(frozen=True)
class LaneBackoff:
    """The connection failures of a lane in a row; times are monotonic seconds."""

    failures: int = 0
    until_s: float = 0.0

    def failed(self, policy: BackoffPolicy, now_s: float, random: Random) -> LaneBackoff:
        """After one more failure. Failures of one moment, on several connections, count once."""
        if now_s < self.until_s:
            return self
        wait_s = min(
            policy.first_wait_s * policy.factor ** min(self.failures, 64), policy.wait_s_max
        )
        return LaneBackoff(self.failures + 1, now_s + jittered(wait_s, policy.jitter, random))

    def wait_s(self, now_s: float) -> float:
        """Seconds until the lane may connect again."""
        return max(0.0, self.until_s - now_s)


CALM = LaneBackoff()


def jittered(wait_s: float, jitter: float, random: Random) -> float:
    """``wait_s`` times a random factor from 1 - jitter to 1 + jitter."""
    return wait_s * random.uniform(1 - jitter, 1 + jitter)
