"""How large a step may be: as configured, and smaller for a while after memory did not suffice for one."""

from __future__ import annotations

QUIET_STEPS = 64
"""After so many steps that fitted, twice as much is tried again."""


class StepLimits:
    """Limits on the tokens of a step and on the requests that run.

    Args:
        max_tokens, max_rows: as configured.
        least_tokens: what is not cut further; ``max_tokens`` where prompts must not be split.
    """

    def __init__(self, max_tokens: int, max_rows: int, least_tokens: int) -> None:
        self.tokens, self.rows = max_tokens, max_rows
        self._max_tokens, self._max_rows = max_tokens, max_rows
        self._least_tokens = min(least_tokens, max_tokens)
        self._quiet_until = 0

    def shrink(self, num_tokens: int, num_rows: int) -> bool:
        """Halves what did not fit; False if it cannot be less."""
        if num_rows <= 1 and num_tokens <= self._least_tokens:
            return False
        self.rows = max(num_rows // 2, 1)
        self.tokens = max(num_tokens // 2, self._least_tokens)
        self._quiet_until = QUIET_STEPS
        return True

    def note(self) -> None:
        """A step begins."""
        if not self._quiet_until:
            return
        self._quiet_until -= 1
        if self._quiet_until:
            return
        self.tokens, self.rows = min(2 * self.tokens, self._max_tokens), min(2 * self.rows, self._max_rows)
        if (self.tokens, self.rows) != (self._max_tokens, self._max_rows):
            self._quiet_until = QUIET_STEPS
