"""An OpenAI-compatible endpoint of exactly a given latency and so many slots, in a process of its own.

    python -m benchmarks.endpoint --latency 0.2 --slots 32 --jitter 0.8

prints its address, and counts. Each sequence holds a slot for the latency, first come, first served; a request is
answered when its last sequence is done. Texts, verdicts and latencies follow from the request. It knows no model.
"""

import argparse
import asyncio
import heapq
import json
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from aiohttp import web

from benchmarks.material import key_of, scene
from benchmarks.mischief import AT_ONCE, HANG, OUTAGE, POISON, RESET, Mischief, spoilt

MODEL = "bench"
RETRY_AFTER_S = 1
NEVER_S = 3600.0


@dataclass(frozen=True)
class Pace:
    """How fast an endpoint is: seconds a sequence takes, times a factor drawn a request, uniform in 1 +- jitter; and
    how many sequences are worked on at once."""

    latency: float = 0.2
    slots: int = 32
    jitter: float = 0.0
    seed: int = 0

    def seconds(self, key: str) -> float:
        return self.latency * (1 + self.jitter * random.Random(f"{self.seed}/{key}").uniform(-1, 1))


class Slots:
    """When each sequence will be done, known as it comes: a slot goes on with the next one the moment it is free,
    however late the process itself wakes up."""

    def __init__(self, count: int):
        self._free = [0.0] * count

    def take(self, now: float, seconds: float) -> float:
        """The time at which a sequence that comes now, after all that came before, is done."""
        done = max(now, self._free[0]) + seconds
        heapq.heapreplace(self._free, done)
        return done


@dataclass(slots=True)
class Call:
    """One request as it was seen. Times are of the machine's monotonic clock (s)."""

    sequences: list[str]
    arrived: float
    answered: float | None = None


@dataclass
class Ledger:
    """What was asked and answered."""

    calls: list[Call] = field(default_factory=list)
    work_s: float = 0.0
    in_flight: int = 0
    most_in_flight: int = 0
    faults: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def flying(self, call: Call) -> Iterator[None]:
        self.calls.append(call)
        self.in_flight += len(call.sequences)
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            yield
        finally:
            self.in_flight -= len(call.sequences)

    def stats(self) -> dict[str, Any]:
        """`work_s` is all drawn latencies together; `serve_s` from the first request to the last good answer."""
        answered = [call.answered for call in self.calls if call.answered is not None]
        return {
            "requests": len(self.calls),
            "sequences": sum(len(call.sequences) for call in self.calls),
            "most_in_flight": self.most_in_flight,
            "work_s": self.work_s,
            "serve_s": max(answered) - self.calls[0].arrived if answered else 0.0,
            "endpoint_cpu_s": time.process_time(),
            "faults": dict(self.faults),
        }


class Server:
    """Answers at a pace, with mischief."""

    def __init__(self, pace: Pace, mischief: Mischief):
        self._pace = pace
        self._mischief = mischief
        self._slots = Slots(pace.slots)
        self._ledger = Ledger()
        self._sent: Counter[str] = Counter()
        self._outage_ends = 0.0

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 24)
        app.add_routes(
            [
                web.post("/v1/chat/completions", self._chat),
                web.get("/v1/models", self._models),
                web.get("/stats", self._stats),
                web.get("/calls", self._calls),
            ]
        )
        return app

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    async def _stats(self, _: web.Request) -> web.Response:
        return web.json_response(self._ledger.stats())

    async def _calls(self, _: web.Request) -> web.Response:
        return web.json_response([[call.sequences, call.arrived, call.answered] for call in self._ledger.calls])

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        now = time.monotonic()
        body = await request.text()
        asked = json.loads(body)
        call = Call(sequences(asked), now)
        verdict = "response_format" in asked
        with self._ledger.flying(call):
            fault = self._fault(body, verdict, now)
            if fault not in AT_ONCE:
                await self._work(call, now)
            if time.monotonic() < self._outage_ends:
                fault = OUTAGE
            if fault is None:
                call.answered = time.monotonic()
                return _ok(completion(call.sequences, verdict))
            self._ledger.faults[fault] += 1
            return await self._misbehave(request, call, verdict, fault)

    async def _work(self, call: Call, now: float) -> None:
        seconds = self._pace.seconds(call.sequences[0])
        self._ledger.work_s += seconds * len(call.sequences)
        done = max(self._slots.take(now, seconds) for _ in call.sequences)
        await asyncio.sleep(done - time.monotonic())

    def _fault(self, body: str, verdict: bool, now: float) -> str | None:
        mischief, key = self._mischief, key_of(body)
        attempt, self._sent[key] = self._sent[key], self._sent[key] + 1
        if mischief.outage_s and len(self._ledger.calls) == mischief.outage_after:
            self._outage_ends = now + mischief.outage_s
        if now < self._outage_ends:
            return OUTAGE
        if mischief.poison and mischief.poison in body:
            return POISON
        return mischief.drawn(key, attempt, verdict)

    async def _misbehave(self, request: web.Request, call: Call, verdict: bool, fault: str) -> web.StreamResponse:
        """Half of an outage's answers are broken connections."""
        if fault == HANG:
            await asyncio.sleep(NEVER_S)
        if fault == RESET or (fault == OUTAGE and len(self._ledger.calls) % 2):
            return await _reset(request, completion(call.sequences, verdict))
        if fault == "HTML":
            return web.Response(text="<html><body>Please log in.</body></html>", content_type="text/html")
        if status := AT_ONCE.get(fault):
            after = {"Retry-After": str(RETRY_AFTER_S)} if fault.endswith("Retry-After") else {}
            error = {"message": f"{fault} on purpose", "type": "error", "code": None}
            return web.json_response({"error": error}, status=status, headers=after)
        spoils_text = fault in ("fenced JSON", "prose around JSON", "fewer choices")
        if spoils_text:  # still an answer, and paid for
            call.answered = time.monotonic()
        return _ok(spoilt(completion(call.sequences, verdict), fault))


def sequences(asked: dict[str, Any]) -> list[str]:
    """A name for each completion that a request asks for."""
    # The system's and the first user's message: a judge that is asked again has the same opinion.
    topic = key_of("\n".join(message["content"] for message in asked["messages"][:2]))
    first = asked.get("seed") or 0
    return [f"{topic}/{first + index}" for index in range(asked.get("n") or 1)]


def completion(names: Sequence[str], verdict: bool) -> str:
    """The body of the answer with so many choices, each of which follows from its name."""
    texts = [_verdict(key) if verdict else scene(key) for key in names]
    choices = [
        {"index": i, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        for i, text in enumerate(texts)
    ]
    usage = {"prompt_tokens": 250, "completion_tokens": 90 * len(texts), "total_tokens": 250 + 90 * len(texts)}
    return json.dumps(
        {"id": "1", "object": "chat.completion", "created": 0, "model": MODEL, "choices": choices, "usage": usage}
    )


def _verdict(key: str) -> str:
    """An opinion on three completions, or on the first three."""
    best, worst = random.Random(key).sample((1, 2, 3), 2)
    return json.dumps({"reason": f"Number {best} sounds like them.", "best": best, "worst": worst, "tie": False})


def _ok(body: str) -> web.Response:
    return web.Response(text=body, content_type="application/json")


async def _reset(request: web.Request, body: str) -> web.StreamResponse:
    """Half of a body, then the connection is gone."""
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(body))})
    await response.prepare(request)
    await response.write(body[: len(body) // 2].encode())
    if request.transport is not None:
        request.transport.abort()
    return response


def main() -> None:
    parser = argparse.ArgumentParser(description="An endpoint of exactly a given latency and so many slots.")
    parser.add_argument("--port", type=int, default=0)
    for option in (*fields(Pace), *fields(Mischief)):
        assert option.default is not MISSING
        parser.add_argument(
            f"--{option.name.replace('_', '-')}", type=type(option.default), default=option.default, dest=option.name
        )
    given = vars(parser.parse_args())
    port, pace_names = given.pop("port"), [option.name for option in fields(Pace)]
    pace = Pace(**{name: given.pop(name) for name in pace_names})
    asyncio.run(_serve(Server(pace, Mischief(**given)).app(), port))


async def _serve(app: web.Application, port: int) -> None:
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    main()
