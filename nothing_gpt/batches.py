"""Requests in bulk through OpenAI's batch API: half the price, an answer within a day, and nothing paid for twice.

Before a batch is submitted its ticket is stored: a key, which the batch carries in its metadata, and its rows. A later
run finds the batch by the ticket's id or, where a kill came before that was known, by the key among the batches listed.
A row that some ticket names is never submitted. What a reply means is decided in `replies.py`; single requests are
`endpoint.py`'s. Uploaded files are not deleted here: providers let them expire.
"""

import hashlib
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import IO, Any

from openai.types import Batch

from nothing_gpt.batch_api import ENDED, BatchApi
from nothing_gpt.config import EndpointSettings, Price
from nothing_gpt.endpoint import STRANGERS, Service, price_of
from nothing_gpt.errors import BadRowError, FatalError, NothingGPTError, TransientError
from nothing_gpt.progress import Advance, progress, say
from nothing_gpt.replies import Meter, Reply
from nothing_gpt.store import Store, reporting_disk

BATCH_DISCOUNT = 0.5
"""Price of a batch by that of single requests: OpenAI's (openai.com/api/pricing) and Gemini's
(ai.google.dev/gemini-api/docs/pricing) price pages."""
MOST_REQUESTS = 50_000
MOST_BYTES = 200_000_000
"""OpenAI's limits of one batch and of its file (platform.openai.com/docs/guides/batch)."""
ROUNDS = 3
"""Batches in which a row may fail for reasons that pass (429, 5xx, expired, missing) before it is set aside."""
POLL_S = 10.0
LONGEST_POLL_S = 60.0
LONGEST_WAIT_S = 48 * 3600.0
"""Waiting in which no batch ends, after which none will: the window that they are asked for (24 h), and a day."""


def batch_price(price: Price | None) -> Price | None:
    """What a model's tokens cost in batches."""
    return price and Price(input=price.input * BATCH_DISCOUNT, output=price.output * BATCH_DISCOUNT)


def ask_in_batches(
    service: Service,
    settings: EndpointSettings,
    group: str,
    store: Store,
    folder: str,
    requests: Iterable[tuple[str, dict[str, Any]]],
    handle: Callable[[str, Reply | BadRowError], None],
    label: str,
    *,
    meter: Meter,
    answered_by: str = "",
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Asks every request and hands each one's reply, or why there is none, to `handle`, exactly once.

    `requests` are (custom id, body of a chat request with `messages` and `max_tokens`, without `model`); the same id
    and body are the same request, also in a later run. Tickets are kept in `store` under `folder`. `group` is the
    settings' name, for messages. Of the rows kept from before, `answered_by` is the model that answered them and
    `meter`, at `batch_price`, what they cost.

    Raises:
        FatalError: no batch API, a batch that is refused, the spending limit, another model, no end of a batch for
            `LONGEST_WAIT_S` seconds. TransientError: no answer for `DEADLINE_S` seconds. KeyboardInterrupt and
            whatever `handle` raises pass. After each of them the batches go on, and the next run collects them.
    """
    price_of(service.model, settings, group)
    with reporting_disk(Path(tempfile.gettempdir())), tempfile.TemporaryFile() as spool:
        rows = _spooled(requests, service.model, meter, spool)
        if not rows:
            return
        with BatchApi(service, group, f"{store.uri}/{folder}", sleep) as api, progress(label, len(rows)) as advance:
            work = _Work(api, settings, meter, store, folder, rows, spool, handle, advance, answered_by)
            try:
                work.run()
            except KeyboardInterrupt:
                if work.open:
                    say(f"{api.url}: what was submitted goes on; the next run collects it")
                raise


@dataclass(frozen=True, slots=True)
class _Row:
    """A request that has no reply yet: where its line is in the spool (bytes), and the most that it can cost (USD)."""

    custom_id: str
    start: int
    size: int
    most_usd: float


@dataclass(frozen=True, slots=True)
class _Ticket:
    """What is stored of a batch. `rows` are those that it answers or may still answer; `id` is empty until known."""

    key: str
    rows: list[str]
    id: str = ""


def _spooled(
    requests: Iterable[tuple[str, dict[str, Any]]], model: str, meter: Meter, spool: IO[bytes]
) -> dict[str, _Row]:
    """Writes each request's line of a batch file into the spool; returns the rows by the hash that is their id there,
    so that a request whose body changed is another row."""
    rows: dict[str, _Row] = {}
    for custom_id, body in requests:
        request = {"model": model, **body}
        row = hashlib.sha256(json.dumps([custom_id, request], sort_keys=True).encode()).hexdigest()[:32]
        line = {"custom_id": row, "method": "POST", "url": "/v1/chat/completions", "body": request}
        start = spool.tell()
        size = spool.write(json.dumps(line).encode() + b"\n")
        rows[row] = _Row(custom_id, start, size, meter.most(body["messages"], body.get("n", 1) * body["max_tokens"]))
    return rows


class _Work:
    """The rows of one call on their way: waiting, in an open batch, or gone because they are answered or set aside."""

    def __init__(
        self,
        api: BatchApi,
        settings: EndpointSettings,
        meter: Meter,
        store: Store,
        folder: str,
        rows: dict[str, _Row],
        spool: IO[bytes],
        handle: Callable[[str, Reply | BadRowError], None],
        advance: Advance,
        answered_by: str,
    ):
        self.open: list[_Ticket] = []
        self._api, self._settings, self._meter = api, settings, meter
        self._store, self._folder = store, folder
        self._rows, self._spool = rows, spool
        self._handle, self._advance = handle, advance
        self._answered_by = answered_by
        self._failures: dict[str, int] = {}

    def run(self) -> None:
        self._api.probe()
        self._recover()
        while self._rows:
            self._submit()
            ticket, batch = self._next_ended()
            self._collect(ticket, batch)
            self.open.remove(ticket)

    def _recover(self) -> None:
        """Finds the batches of earlier runs that may answer rows of this one."""
        for name in list(self._store.list(self._folder)):
            ticket = _Ticket(**json.loads(self._store.fetch(name).read_bytes()))
            if self._rows.keys().isdisjoint(ticket.rows):
                continue
            if not ticket.id:
                found = self._api.find(ticket.key)
                ticket = replace(ticket, id=found) if found else replace(ticket, rows=[])
                self._keep(ticket)
            if ticket.id:
                self.open.append(ticket)

    def _submit(self) -> None:
        """Submits the waiting rows that surely fit the spending limit.

        Raises:
            FatalError: none fits, and none is under way.
        """
        in_flight = {row for ticket in self.open for row in ticket.rows}
        spent = (self._meter.cost_usd or 0.0) + self._meter.others_usd
        spent += sum(self._rows[row].most_usd for row in in_flight & self._rows.keys())
        batch: list[str] = []
        size = 0
        for name, row in self._rows.items():
            if name in in_flight:
                continue
            spent += row.most_usd
            if self._settings.max_cost_usd is not None and spent > self._settings.max_cost_usd:
                break
            if batch and (len(batch) == MOST_REQUESTS or size + row.size > MOST_BYTES):
                self._submit_one(batch)
                batch, size = [], 0
            batch.append(name)
            size += row.size
        if batch:
            self._submit_one(batch)
        if not self.open:
            raise FatalError(
                f"{self._api.group}.max_cost_usd: {self._settings.max_cost_usd} would be exceeded after "
                f"{self._meter.calls + self._meter.kept} calls; the answers so far are kept; raise the limit and run "
                "again"
            )

    def _submit_one(self, rows: list[str]) -> None:
        with tempfile.TemporaryFile() as file:
            for row in rows:
                self._spool.seek(self._rows[row].start)
                file.write(self._spool.read(self._rows[row].size))
            file_id = self._api.upload(file)
        # The store is part of the key, so that another store's batch of the same requests is none of ours.
        place = hashlib.sha256("\n".join([self._store.uri, self._folder, *rows]).encode()).hexdigest()[:32]
        attempt = next(n for n in count(1) if self._store.read(self._name(f"{place}-{n}")) is None)
        ticket = _Ticket(f"{place}-{attempt}", rows)
        self._keep(ticket)
        ticket = replace(ticket, id=self._api.submit(ticket.key, file_id))
        self._keep(ticket)
        self.open.append(ticket)

    def _name(self, key: str) -> str:
        return f"{self._folder}/{key}.json"

    def _keep(self, ticket: _Ticket) -> None:
        self._store.write(self._name(ticket.key), json.dumps(asdict(ticket)).encode())

    def _next_ended(self) -> tuple[_Ticket, Batch]:
        wait, waited = POLL_S, 0.0
        while True:
            batches = [(ticket, self._api.retrieve(ticket.id)) for ticket in self.open]
            for ticket, batch in batches:
                if batch.status in ENDED:
                    return ticket, batch
            counts = [batch.request_counts for _, batch in batches if batch.request_counts]
            done, total = sum(each.completed for each in counts), sum(each.total for each in counts)
            self._advance(0, f"{batches[0][1].status}, {done} of {total} answered")
            if waited > LONGEST_WAIT_S:
                raise self._api.endless(batches[0][1], waited)
            self._api.sleep(wait)
            waited += wait
            wait = min(1.5 * wait, LONGEST_POLL_S)

    def _collect(self, ticket: _Ticket, batch: Batch) -> None:
        """Hands over what an ended batch answers. What it does not answer leaves its ticket and waits again; so does
        what another model answers, since rows of one stage come from one.

        Raises:
            FatalError: none of the rows can be answered, or too many come from another model.
        """
        self._answered_by = self._answered_by or self._usual_name(batch)
        seconds = max(0.0, time.time() - batch.created_at)
        pending = {row for row in ticket.rows if row in self._rows}
        errors = dict.fromkeys(pending, TransientError(f"batch {batch.id} ({batch.status}) left it unanswered"))
        bad: dict[str, BadRowError] = {}
        strangers: dict[str, str] = {}
        fatal: FatalError | None = self._api.refusal(batch) if batch.status == "failed" else None
        for line in self._api.lines(batch):
            row = line["custom_id"]
            if row not in pending:  # another's, or a line that comes twice
                continue
            try:
                reply = self._api.reply(line)
            except TransientError as error:
                errors[row] = error
            except BadRowError as error:
                bad[row] = error
            except FatalError as error:
                fatal = error
            else:
                if row not in strangers:
                    self._meter.count(reply, seconds)  # whoever answered, it is paid for
                if reply.model and reply.model != self._answered_by:
                    strangers[row] = reply.model
                    errors[row] = TransientError(f"{self._api.url}: {self._api.model} was answered by {reply.model}")
                    continue
                pending.remove(row)
                strangers.pop(row, None)
                bad.pop(row, None)
                self._finish(row, reply)
        for row in pending:
            if row not in bad:
                failures = self._failures[row] = self._failures.get(row, 0) + 1
                if failures >= ROUNDS:
                    bad[row] = BadRowError(f"{errors[row]} ({failures} times)", attempts=failures)
                else:
                    self._meter.retries += 1
        # Before anything is raised: the next run shall not meet the same errors again, but ask anew.
        self._keep(replace(ticket, rows=[row for row in ticket.rows if row not in pending]))
        if len(strangers) > STRANGERS:
            fatal = self._another_model([*strangers.values()][-1])
        if fatal:
            raise fatal
        for row, error in bad.items():
            self._finish(row, error)

    def _finish(self, row: str, outcome: Reply | BadRowError) -> None:
        self._handle(self._rows.pop(row).custom_id, outcome)
        self._advance()

    def _usual_name(self, batch: Batch) -> str:
        """The name of the model that most of a batch's replies come from."""
        names: Counter[str] = Counter()
        for line in self._api.lines(batch):
            with suppress(NothingGPTError):
                names[self._api.reply(line).model] += 1
        del names[""]
        return max(names, key=lambda name: names[name], default="")

    def _another_model(self, name: str) -> FatalError:
        return FatalError(
            f"{self._api.url}: {self._api.model} was answered by {self._answered_by}, and now by {name}; "
            f"what was answered is kept; set {self._api.group}.model to the model that all rows shall come "
            "from, and run again"
        )
