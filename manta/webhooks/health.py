"""How much an endpoint gets at once: additive increase, multiplicative decrease.

A delivery's own retries are minutes and hours apart; this is about the others that wait. Each
success lets one more request be under way, up to ``ROOM_MAX``; each sign that the endpoint has too
much halves them and makes a pause, twice as long each time, or as long as ``Retry-After`` asks.
"""

from __future__ import annotations

from manta.webhooks.retries import Answered, asked_wait_s

ROOM_FIRST = 8
ROOM_MAX = 64
PAUSE_FIRST_S = 1.0
PAUSE_MAX_S = 60.0


class Health:
    """Of one endpoint, in the courier's memory. Times are seconds of a monotonic clock."""

    def __init__(self) -> None:
        self.room = ROOM_FIRST
        self._troubles = 0  # in a row
        self._until_s = float("-inf")

    def note(self, answered: Answered, now_s: float) -> None:
        if answered.is_success:
            self.room = min(self.room + 1, ROOM_MAX)
            self._troubles = 0
        elif answered.is_busy:
            if now_s < self._until_s and answered.retry_after_s is None:
                return  # it was under way when the pause began
            self.room = max(self.room // 2, 1)
            pause_s = min(PAUSE_FIRST_S * 2.0**self._troubles, PAUSE_MAX_S)
            self._troubles = min(self._troubles + 1, 30)
            pause_s = max(pause_s, asked_wait_s(answered.retry_after_s))
            self._until_s = max(self._until_s, now_s + pause_s)

    def pause_s(self, now_s: float) -> float:
        """How long nothing should be sent."""
        return max(0.0, self._until_s - now_s)
