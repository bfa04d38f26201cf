"""What a bad endpoint answers: faults drawn by a seed, the request and how often it was sent.

So a fault does not depend on what else is in flight, and a run can be repeated. Sends nothing: that is `endpoint.py`.
"""

import json
from dataclasses import dataclass

from benchmarks.material import key_of

HANG = "timeout"
RESET = "reset in mid-body"
OUTAGE = "outage"
POISON = "poison"

AT_ONCE = {
    "429": 429,
    "429 with Retry-After": 429,
    "500": 500,
    "502": 502,
    "503": 503,
    "HTML": 200,
    POISON: 500,
    OUTAGE: 503,
}
"""Faults that an endpoint answers without having worked on the request, with their status."""
FAULTS = (
    *("429", "429 with Retry-After", "500", "502", "503", "HTML", HANG, RESET),
    *("truncated JSON", "empty choices", "fewer choices", "wrong model", "200 with an error object"),
)
"""Faults of any reply."""
VERDICT_FAULTS = ("fenced JSON", "prose around JSON", "best = worst")
"""Further ones of a judge's; the first two are to be understood, not to be asked for again."""


@dataclass(frozen=True)
class Mischief:
    """How an endpoint misbehaves."""

    faults: float = 0.0
    """Share of the requests that are answered by a fault."""
    fault_seed: int = 0
    only: str = ""
    """Draw this fault alone; empty: any that the reply can have."""
    outage_after: int = 0
    """From this request on everything fails, what is in flight included, for `outage_s` seconds."""
    outage_s: float = 0.0
    poison: str = ""
    """Requests that hold this text always fail."""

    def drawn(self, key: str, attempt: int, verdict: bool) -> str | None:
        """What is wrong with the answer to the `attempt`-th sending (from 0) of a request."""
        point = int(key_of(f"{self.fault_seed}/{key}/{attempt}"), 16) / 16**16
        if point >= self.faults:
            return None
        kinds = (self.only,) if self.only else FAULTS + VERDICT_FAULTS if verdict else FAULTS
        return kinds[int(point / self.faults * len(kinds))]


def spoilt(body: str, fault: str) -> str:
    """A good completion's JSON with the fault in it."""
    if fault == "truncated JSON":
        return body[: len(body) // 2]
    if fault == "200 with an error object":
        return json.dumps({"error": {"message": "the engine is dead", "type": "internal", "code": None}})
    reply = json.loads(body)
    if fault == "wrong model":
        return json.dumps(reply | {"model": "somebody-else"})
    choices = reply["choices"]
    if fault == "empty choices":
        choices = []
    elif fault == "fewer choices":
        choices = choices[:-1]
    else:
        message = choices[0]["message"]
        message["content"] = _verdict(message["content"], fault)
    return json.dumps(reply | {"choices": choices})


def _verdict(text: str, fault: str) -> str:
    match fault:
        case "fenced JSON":
            return f"```json\n{text}\n```"
        case "prose around JSON":
            return f"Let me think about {{these}} two.\n{text}\nI hope that this helps!"
        case "best = worst":
            verdict = json.loads(text)
            return json.dumps(verdict | {"worst": verdict["best"]})
        case _:
            raise ValueError(f"{fault}: no such fault")
