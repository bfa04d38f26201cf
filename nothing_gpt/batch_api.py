"""The files and batches of an OpenAI-compatible endpoint, with the patience that outages need.

Every call is tried again while its error may pass, and a batch is created at most once. What goes into the batches and
what becomes of their answers is `batches.py`'s.
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from typing import IO, Any, Self, TypeVar

import httpx2
import openai
from openai.types import Batch

from nothing_gpt.endpoint import DEADLINE_S, FIRST_ANSWER_S, TIMEOUT_S, Service
from nothing_gpt.errors import BadRowError, FatalError, TransientError
from nothing_gpt.replies import RateLimitError, Reply, UnreachableError, classify, hidden, read_reply

ENDED = {"completed", "failed", "expired", "cancelled"}
LISTED_AFTER_S = 60.0
"""Seconds after which a batch that was created, though the answer was lost, is surely among those listed."""
READS = 3
"""Readings of a file with torn lines before it is taken as it is."""
LONGEST_BACKOFF_S = 30.0

_KEY = "nothing_gpt"
_ABSENT = {404, 405, 501}
_T = TypeVar("_T")


class BatchApi:
    """A connection to one service's batch API. A context manager.

    Every method raises a FatalError that names `group`'s setting where there is no such API, and a TransientError where
    `DEADLINE_S` seconds were waited between attempts without any answer.
    """

    def __init__(self, service: Service, group: str, tickets: str, sleep: Callable[[float], None]):
        """`group` is the settings' name and `tickets` the folder of the batches' tickets, for messages.

        Raises:
            FatalError: an address that is none, or a key that can be none.
        """
        self.model, self.group, self.sleep = service.model, group, sleep
        urls, self._key = service.open()
        if len(urls) > 1:
            raise FatalError(f"{group}.batch: a batch is made at one address, and {', '.join(urls)} are several")
        (self.url,) = urls
        self._tickets = tickets
        self._reached = False
        self._client = openai.OpenAI(
            base_url=self.url, api_key=self._key, max_retries=0, timeout=openai.Timeout(TIMEOUT_S, connect=10)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def probe(self) -> None:
        """Asks whether there is a batch API, before a large file is sent to where there is none."""

        def listed() -> None:
            try:
                next(iter(self._client.batches.list(limit=1)), None)
            except (AttributeError, TypeError, ValueError):  # a page, or JSON of another kind
                raise FatalError(self._no_api("it answers with something else")) from None

        self._patiently(listed)

    def upload(self, file: IO[bytes]) -> str:
        """Uploads a batch's lines, which costs nothing; returns the file's id."""

        def uploaded() -> str:
            file.seek(0)
            return _given(self._client.files.create(file=("batch.jsonl", file), purpose="batch").id)

        return self._patiently(uploaded)

    def submit(self, key: str, file_id: str) -> str:
        """Creates the batch with this key in its metadata; where an answer was lost, it looks for the batch before it
        asks again. Returns the batch's id."""
        perhaps_created = False

        def created() -> str:
            nonlocal perhaps_created
            if perhaps_created and (found := self._listed(key)):
                return found
            perhaps_created = True
            try:
                batch = self._client.batches.create(
                    input_file_id=file_id,
                    endpoint="/v1/chat/completions",
                    completion_window="24h",
                    metadata={_KEY: key},
                )
            except openai.RateLimitError:
                perhaps_created = False
                raise
            return _given(batch.id)

        return self._patiently(created)

    def find(self, key: str) -> str | None:
        """The id of the batch with this key in its metadata, or None where it was never created."""
        return self._patiently(lambda: self._listed(key))

    def retrieve(self, batch_id: str) -> Batch:
        """The batch as it stands, its status in small letters."""

        def retrieved() -> Batch:
            batch = self._client.batches.retrieve(batch_id)
            batch = batch.model_copy(update={"status": _given(batch.status).lower()})
            counts = batch.request_counts
            if batch.status == "completed" and counts and counts.completed and not batch.output_file_id:
                raise TransientError(f"{self.url}: batch {batch_id} is completed, but its file is not there yet")
            return batch

        return self._patiently(retrieved, self._gone(batch_id))

    def lines(self, batch: Batch) -> Iterator[dict[str, Any]]:
        """The lines of an ended batch's answers and errors, each with its `custom_id`, in any order; some may come
        twice. A file with a torn line is read again, from its start."""
        for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
            for _ in range(READS):
                torn = False
                with tempfile.TemporaryFile() as file:
                    self._download(file_id, batch.id, file)
                    for line in file:
                        row = _parsed(line)
                        if row is not None:
                            yield row
                        elif line.strip():
                            torn = True
                if not torn:
                    break

    def reply(self, line: dict[str, Any]) -> Reply:
        """What a line holds.

        Raises:
            BadRowError: this request cannot be answered. TransientError: asked again it may be. FatalError: none can.
        """
        response = line.get("response")
        if not isinstance(response, dict) or not isinstance(response.get("status_code"), int):
            raise TransientError(f"{self.url}: {self._words(line.get('error'))}")
        status, body = response["status_code"], response.get("body")
        if status == 200:
            return read_reply(json.dumps(body).encode(), self.url, self._key)
        inner = body.get("error", body) if isinstance(body, dict) else body
        answer = httpx2.Response(status, request=httpx2.Request("POST", self.url))
        error = openai.APIStatusError(self._words(inner), response=answer, body=inner)
        raise classify(error, self.url, self.model, self._key)

    def refusal(self, batch: Batch) -> FatalError:
        """Why a batch failed as a whole, which the provider tells in the batch."""
        errors = batch.errors.data if batch.errors and batch.errors.data else []
        reasons = "; ".join(f"{error.message} [{error.code}]" for error in errors[:3]) or "it gives no reason"
        return FatalError(
            f"{self.url}: batch {batch.id} failed: {self._words(reasons)}; what was answered is kept; mend the cause "
            "and run again"
        )

    def endless(self, batch: Batch, seconds: float) -> FatalError:
        """Why nobody waits for a batch any more."""
        return FatalError(
            f"{self.url}: batch {batch.id} is still {batch.status!r} after {seconds / 3600:.0f} hours; see the "
            f"provider's list of batches, and to ask and pay anew delete the file in {self._tickets} that names it"
        )

    def _listed(self, key: str) -> str | None:
        for wait in (0.0, LISTED_AFTER_S):
            if wait:
                self.sleep(wait)
            for batch in self._client.batches.list(limit=100):
                if (batch.metadata or {}).get(_KEY) == key:
                    return batch.id
        return None

    def _download(self, file_id: str, batch_id: str, file: IO[bytes]) -> None:
        def downloaded() -> None:
            file.seek(0)
            try:
                with self._client.files.with_streaming_response.content(file_id) as response:
                    for piece in response.iter_bytes(1 << 16):
                        file.write(piece)
            except httpx2.HTTPError as error:  # in mid-body, where the client passes it as it is
                raise UnreachableError(f"{self.url}: the connection broke ({error})") from None
            file.seek(0)

        self._patiently(downloaded, self._gone(batch_id))

    def _patiently(self, action: Callable[[], _T], absent: str = "") -> _T:
        """`action`'s result, tried again while its errors may pass; `absent` is what a 404 means."""
        waited, backoff = 0.0, 1.0
        while True:
            try:
                result = self._once(action, absent)
                self._reached = True
                return result
            except BadRowError as error:
                raise FatalError(f"{self.group}.batch: {self.url} refuses it ({error})") from None
            except TransientError as error:
                never_reached = isinstance(error, UnreachableError) and not self._reached
                retry_after = error.retry_after if isinstance(error, RateLimitError) else 0.0
                if never_reached and waited >= FIRST_ANSWER_S:
                    raise FatalError(str(error)) from None
                if retry_after > DEADLINE_S:
                    raise FatalError(
                        f"{error}; it asks to come back in {retry_after / 60:.0f} minutes; batches go on and what was "
                        "answered is kept; run again then"
                    ) from None
                if waited >= DEADLINE_S:
                    raise TransientError(
                        f"{self.url}: no answer for {waited / 60:.0f} minutes ({error}); batches go on and what was "
                        "answered is kept; run again when it is back"
                    ) from None
                wait = max(backoff, retry_after)
            self.sleep(wait)
            waited, backoff = waited + wait, min(2 * backoff, LONGEST_BACKOFF_S)

    def _once(self, action: Callable[[], _T], absent: str) -> _T:
        try:
            return action()
        except openai.APIStatusError as error:
            if error.status_code in _ABSENT:
                raise FatalError(absent or self._no_api(str(error.status_code))) from None
            raise classify(error, self.url, self.model, self._key) from None
        except openai.APIError as error:
            raise classify(error, self.url, self.model, self._key) from None
        except (AttributeError, TypeError, ValueError):  # the client hands over a page, or other JSON, as it came
            raise TransientError(f"{self.url}: an answer that is none of the batch API's") from None

    def _words(self, value: object) -> str:
        """An error's own words, on one line."""
        if isinstance(value, dict):
            value = value.get("message") or value.get("code")
        return " ".join(hidden(str(value or "no reason given"), self._key).split())[:200]

    def _no_api(self, reason: str) -> str:
        return f"{self.group}.batch: {self.url} has no batch API ({reason}); set it to false"

    def _gone(self, batch_id: str) -> str:
        return (
            f"{self.url}: batch {batch_id}, or its file, is not there; set the key that it was submitted with, or, if "
            f"the provider no longer keeps it, delete the file in {self._tickets} that names it, to ask and pay anew"
        )


def _given(field: str | None) -> str:
    """A field without which an answer is none. Raises ValueError where it is missing."""
    if not isinstance(field, str) or not field:
        raise ValueError
    return field


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and isinstance(value.get("custom_id"), str) else None
