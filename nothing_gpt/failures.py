"""The rows of a stage that could not be had, and how many of them a stage bears.

Which rows failed is not kept: the next run asks for them again.
"""

import math
from dataclasses import dataclass

from nothing_gpt.errors import BadRowError, FatalError


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a row could not be had, the last reply's HTTP status where there was one, and how often it was asked for."""

    reason: str
    status: int | None
    attempts: int


class Failures:
    """The failed rows of one stage by their ids. One row may always fail, and of many rows a share."""

    def __init__(self, label: str, setting: str, share: float, total: int):
        """`label` names the stage and `setting` the setting that holds the share; `total` counts its rows."""
        self.allowed = max(1, math.floor(share * total + 1e-9))  # 0.29 * 100 is a little less than 29
        self._label = label
        self._bound = f"{setting} is {share}"
        self._total = total
        self._failed: dict[str, Failure] = {}

    def __len__(self) -> int:
        return len(self._failed)

    def get(self, row: str) -> Failure | None:
        return self._failed.get(row)

    def add(self, row: str, error: BadRowError) -> None:
        """Sets a row aside.

        Raises:
            FatalError: more rows have failed than the stage bears.
        """
        self._failed[row] = Failure(str(error), error.status, error.attempts)
        if len(self._failed) > self.allowed:
            first = next(iter(self._failed.values()))
            raise FatalError(
                f"{self._label}: {len(self._failed)} of {self._total} rows failed ({self._bound}); the first: "
                f"{first.reason}; what was answered is kept; mend the cause or raise the share, and run again"
            )
