"""Asking judges: every vote on every set that is missing, from one model or a panel, live or in batches.

A vote's key is what the judge is shown, so that none is asked for twice. Replies are kept raw, each with its attempt,
and read when they are wanted: a mended parser costs no call. What a reply means is decided in `verdicts.py`.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import compress, count
from pathlib import Path
from typing import Any, Self

from nothing_gpt.batches import ask_in_batches, batch_price
from nothing_gpt.config import JudgeSettings
from nothing_gpt.endpoint import Endpoint, Service, price_of
from nothing_gpt.errors import BadRowError, FatalError
from nothing_gpt.failures import Failure, Failures
from nothing_gpt.journal import Journal
from nothing_gpt.positions import HASH_BYTES, Positions
from nothing_gpt.preferences import JudgedSet
from nothing_gpt.progress import Advance, progress
from nothing_gpt.records import CompletionSet, digest
from nothing_gpt.replies import Meter, Reply
from nothing_gpt.shards import Shard, Spread, ask_elsewhere, one_model
from nothing_gpt.stopping import run
from nothing_gpt.store import Store
from nothing_gpt.verdicts import RESPONSE_FORMAT, Ask, Ballot, Step, Verdict, ballots, next_step, question

RUBRIC = Path(__file__).parent / "rubric.md"
BATCHES = 4
"""Batches one after the other: a question may want a doubled token cap and a re-ask, and one refuses the schema."""
NO_CHOICE = "fewer than two distinct completions"


def read_rubric(file: str | None) -> str:
    """The judge's instructions. Raises FatalError where the file cannot be read or is empty."""
    path = Path(file) if file else RUBRIC
    try:
        rubric = path.read_text(encoding="utf-8")
    except OSError as error:
        raise FatalError(f"{path}: cannot read the rubric ({error.strerror}); check judge.rubric") from None
    except UnicodeDecodeError:
        raise FatalError(f"{path}: the rubric is not text in UTF-8; save it so") from None
    if not rubric.strip():
        raise FatalError(f"{path}: the rubric is empty; write into it what the judge shall look for")
    return rubric


class Judging:
    """Votes on sets of completions under one group of settings: `ask`, then `result` a set. A context manager.

    The models of a panel are asked one after the other, so that `concurrency` bounds all traffic and `max_cost_usd`
    what they cost together. A ballot that an earlier run gave up is asked anew. Under another `again` everything is.
    `shard`: only the sets of that shard are asked about here, by one of several workers, who is given the `rubric`.
    """

    def __init__(
        self,
        store: Store,
        settings: JudgeSettings,
        service: Service,
        again: str = "",
        shard: Shard | None = None,
        rubric: str | None = None,
    ):
        rubric = read_rubric(settings.rubric) if rubric is None else rubric
        names = dict.fromkeys([service.model, *settings.panel])
        panel = [replace(service, model=name, identity=name) for name in names if name != service.model]
        self._settings = settings
        self._shard = shard
        number = shard.number if shard else None
        self._judges = [_Judge(store, settings, judge, rubric, again, number) for judge in [service, *panel]]
        self._failures: Failures | None = None

    def __enter__(self) -> Self:
        self._open = ExitStack()
        for judge in self._judges:
            self._open.enter_context(judge.journal)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @property
    def usage(self) -> dict[str, Any]:
        """What all votes cost, those kept from before included, in sum and by model."""
        meters = [meter for judge in self._judges for meter in judge.meters.values()]
        models = {judge.service.model: _figures(judge.meters.values()) for judge in self._judges}
        return _figures(meters) | {"models": models}

    @property
    def costs(self) -> dict[str, Meter]:
        """What live votes cost, by model, as a shard tells it."""
        return {judge.service.model: judge.meter for judge in self._judges}

    def ask(self, sets: Sequence[CompletionSet], label: str, spread: Spread | None = None) -> None:
        """Asks for all missing votes; connects only if there are any. Sets are gone through twice a model, one at a
        time. Called again, for other sets. Where there are several shards, and no batches, they are spread first.

        Raises:
            FatalError: no call can be answered, the spending limit is reached, or more than `max_failed_share` of the
                sets lack a vote that could not be had.
            TransientError: the endpoint stopped answering. What was answered is kept in all cases.
        """
        total = self._shard.total if self._shard else len(sets)
        self._failures = Failures(label, "judge.max_failed_share", self._settings.max_failed_share, total)
        with ExitStack() as alone:
            # In the same order in every run, so that no two wait for each other.
            for _, journal in sorted({judge.partition: judge.journal for judge in self._judges}.items()):
                alone.enter_context(journal.alone())
            # A batch is in the provider's queue: more who ask get it no sooner.
            elsewhere = ask_elsewhere(None if self._settings.batch else spread, sets, len(sets), self._lacks)
            if elsewhere:
                for judge in self._judges:
                    judge.journal.refresh()
            # What all of them cost before counts before the first is asked. What a shard gave up stays so in this run.
            given_up = self._failures if elsewhere else None
            waiting = [judge.recall(self._ballots(sets), given_up) for judge in self._judges]
            for judge in self._judges:
                for costs in elsewhere:
                    judge.meter.include(costs[judge.service.model])
            meters = [meter for judge in self._judges for meter in judge.meters.values()]
            for judge, missing in zip(self._judges, waiting, strict=True):
                name = label if len(self._judges) == 1 else f"{label}: {judge.service.model}"
                judge.meter.others_usd = sum(meter.cost_usd or 0.0 for meter in meters if meter is not judge.meter)
                judge.ask(lambda: self._ballots(sets), missing, self._failures, name)

    def result(self, item: CompletionSet) -> JudgedSet:
        """The set with the votes and repeats that there are, and where votes are missing the first one's reason."""
        steps = self._steps(item)
        votes = [step for ballot, step in steps if isinstance(step, Verdict) and not ballot.repeat]
        repeats = [step for ballot, step in steps if isinstance(step, Verdict) and ballot.repeat]
        failure = self._failure(steps)
        return JudgedSet(item, votes, failure.reason if failure else None, repeats)

    def failure(self, item: CompletionSet) -> Failure | None:
        """Why the first of the set's missing votes could not be had; None where none is missing."""
        return self._failure(self._steps(item))

    def _steps(self, item: CompletionSet) -> list[tuple[Ballot, Step]]:
        wanted = ballots(item, self._settings)
        return [(ballot, judge.step(ballot)) for judge in self._judges for ballot in wanted]

    def _failure(self, steps: Sequence[tuple[Ballot, Step]]) -> Failure | None:
        if not steps:
            return Failure(NO_CHOICE, None, 0)
        for ballot, step in steps:
            if isinstance(step, BadRowError) and not ballot.repeat:
                return Failure(str(step), step.status, step.attempts)
            if isinstance(step, Ask) and not ballot.repeat:
                failure = self._failures.get(ballot.row) if self._failures else None
                return failure or Failure("not asked", None, 0)
        return None

    def _lacks(self, item: CompletionSet) -> bool:
        return any(not isinstance(step, Verdict) for _, step in self._steps(item))

    def _ballots(self, sets: Iterable[CompletionSet]) -> Iterator[Ballot]:
        """What is wanted of each model; a set that is there twice is asked about once."""
        seen = Positions()
        for item in sets:
            wanted = ballots(item, self._settings)
            if wanted and (row := bytes.fromhex(wanted[0].row[: 2 * HASH_BYTES])) not in seen:
                seen.add(row, 0)
                yield from wanted


class _Judge:
    """One model and its replies, which are kept under all that decides them but what is shown."""

    def __init__(
        self, store: Store, settings: JudgeSettings, service: Service, rubric: str, again: str, shard: int | None
    ):
        self.service = service
        price = settings.prices.get(service.model)
        # By whether a reply came in a batch: what is kept was paid in the one way or the other.
        self.meters = {False: Meter(price), True: Meter(batch_price(price))}
        self.meter = self.meters[settings.batch]
        self._answered_by = ""
        self._store = store
        self._settings = settings
        self._rubric = rubric
        self._plain = False
        self.partition = digest(
            {
                "judge": service.identity,
                "temperature": settings.temperature,
                "max_tokens": settings.max_tokens,
                "rubric": digest(rubric),
                **({"again": again} if again else {}),
            }
        )[:16]
        self.journal = Journal(store, f"judging/{self.partition}", shard)

    def step(self, ballot: Ballot) -> Step:
        """What the ballot's replies come to."""
        return next_step(self._replies(ballot), ballot.order)

    def recall(self, wanted: Iterable[Ballot], given_up: Failures | None) -> bytearray:
        """Counts what earlier runs paid for; returns, for each ballot, whether its verdict is to be asked for. One that
        was given up is, unless those are to be counted in `given_up`.

        Raises:
            FatalError: one is, and the spending limit needs a price that is not known; or as `Failures.add`.
        """
        waiting, names = bytearray(), set[str]()
        for ballot in wanted:
            rows = [*self._rows(ballot)]
            replies = [Reply.of(row) for row in rows]
            step = next_step(replies, ballot.order)
            if isinstance(step, BadRowError) and given_up is not None:
                given_up.add(ballot.row, step)
                waiting.append(False)
            else:
                waiting.append(not isinstance(step, Verdict))
            for row, reply in zip(rows, replies, strict=True):
                self.meters[row.get("batch", False)].recall(reply)
                names |= {reply.model} - {""}
        self._answered_by = one_model(self.service.model, names, "judge") or self._answered_by
        if any(waiting):
            price_of(self.service.model, self._settings, "judge")
        return waiting

    def ask(self, wanted: Callable[[], Iterator[Ballot]], waiting: bytearray, failures: Failures, label: str) -> None:
        """Asks for what is missing. Raises as `Judging.ask`."""
        if not any(waiting):
            return
        if self._settings.batch:
            return self._ask_in_batches(wanted, failures, label)
        endpoint = Endpoint(self.service, self._settings, "judge", self._answered_by or None, self.meter)
        with progress(label, len(waiting), len(waiting) - sum(waiting)) as advance:
            run(self._ask(endpoint, compress(wanted(), waiting), failures, advance))

    async def _ask(self, endpoint: Endpoint, ballots: Iterable[Ballot], failures: Failures, advance: Advance) -> None:
        async with endpoint:

            async def vote(ballot: Ballot) -> None:
                try:
                    await self._vote(endpoint, ballot)
                except BadRowError as error:
                    failures.add(ballot.row, error)
                cost = endpoint.meter.cost_usd
                advance(note=f"${cost:.2f}" if cost else "")

            await endpoint.each(ballots, lambda _: 1, vote)

    async def _vote(self, endpoint: Endpoint, ballot: Ballot) -> None:
        """Asks until the replies come to a verdict. Raises BadRowError where they are given up."""
        replies = self._replies(ballot)
        step = next_step(replies, ballot.order)
        step = Ask() if isinstance(step, BadRowError) else step
        while isinstance(step, Ask):
            reply = await self._reply(endpoint, ballot, step)
            self.journal.add(f"{ballot.key}/{len(replies)}", reply.row())
            self._answered_by = reply.model or self._answered_by
            replies.append(reply)
            step = next_step(replies, ballot.order)
        if isinstance(step, BadRowError):
            raise step

    async def _reply(self, endpoint: Endpoint, ballot: Ballot, ask: Ask) -> Reply:
        """One reply, held to the schema where the endpoint can."""
        request = self._request(ballot, ask)
        try:
            return await endpoint.chat(**request)
        except BadRowError as error:
            if "response_format" not in request or not _refuses_schema(error):
                raise
        del request["response_format"]
        reply = await endpoint.chat(**request)
        self._plain = True
        return reply

    def _ask_in_batches(self, wanted: Callable[[], Iterator[Ballot]], failures: Failures, label: str) -> None:
        """The same in batches: what the replies of one batch want goes into the next."""
        failed: dict[str, BadRowError] = {}

        def handle(key: str, answer: Reply | BadRowError) -> None:
            if isinstance(answer, BadRowError):
                failed[key] = answer
            else:
                self.journal.add(key, answer.row() | {"batch": True})
                self._answered_by = self._answered_by or answer.model

        for batch in range(BATCHES):
            plain, before = self._plain, self.meter.calls + len(failed)
            due = self._due(wanted(), anew=batch == 0)
            requests = ((key, self._request(ballot, ask)) for key, ballot, ask in due if key not in failed)
            ask_in_batches(
                self.service,
                self._settings,
                "judge",
                self._store,
                f"batches/judging-{self.partition}",
                requests,
                handle,
                label,
                meter=self.meter,
                answered_by=self._answered_by,
            )
            if self.meter.calls + len(failed) == before:
                break
            for key, ballot, _ in self._due(wanted(), anew=True):
                if key in failed and not plain and _refuses_schema(failed[key]):
                    self._plain = True
                    del failed[key]
                elif key in failed:
                    failures.add(ballot.row, failed[key])
        for ballot in wanted():
            step = self.step(ballot)
            if isinstance(step, BadRowError):
                failures.add(ballot.row, step)

    def _due(self, ballots: Iterable[Ballot], anew: bool) -> Iterator[tuple[str, Ballot, Ask]]:
        """What is to be asked next, and the key of the reply to it; `anew`: what was given up as well."""
        for ballot in ballots:
            replies = self._replies(ballot)
            step = next_step(replies, ballot.order)
            if isinstance(step, BadRowError) and anew:
                step = Ask()
            if isinstance(step, Ask):
                yield f"{ballot.key}/{len(replies)}", ballot, step

    def _request(self, ballot: Ballot, ask: Ask) -> dict[str, Any]:
        settings, item = self._settings, ballot.item
        asked = question(self._rubric, item.prompt.messages, [item.completions[i] for i in ballot.order])
        return {
            "messages": [*asked, *ask.after],
            "max_tokens": settings.max_tokens * (2 if ask.doubled else 1),
            **({} if settings.temperature is None else {"temperature": settings.temperature}),
            **({} if self._plain else {"response_format": RESPONSE_FORMAT}),
        }

    def _replies(self, ballot: Ballot) -> list[Reply]:
        return [Reply.of(row) for row in self._rows(ballot)]

    def _rows(self, ballot: Ballot) -> Iterator[dict[str, Any]]:
        """The replies to the ballot as they are kept."""
        for number in count():
            if (row := self.journal.get(f"{ballot.key}/{number}")) is None:
                return
            yield row


def _refuses_schema(error: BadRowError) -> bool:
    return re.search("response_format|schema", str(error)) is not None


def _figures(meters: Collection[Meter]) -> dict[str, Any]:
    """The counts of several meters in sum."""
    costs = [meter.cost_usd for meter in meters]
    total = Meter()
    for meter in meters:
        total.calls += meter.calls
        total.kept += meter.kept
        total.retries += meter.retries
        total.prompt_tokens += meter.prompt_tokens
        total.completion_tokens += meter.completion_tokens
        total.seconds.extend(meter.seconds)
    return total.figures() | {"cost_usd": None if None in costs else sum(cost or 0.0 for cost in costs)}
