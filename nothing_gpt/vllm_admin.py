"""The admin side of a vLLM server: is it up, which adapters does it serve and from which path, load, unload.

Completions are not asked for here (`endpoint.py` does that), and what to promote is not decided here
(`serve/promote.py`). Load changed weights from a *new path*: vLLM keeps the prefix cache of one it has seen.
"""

import re
import time
from collections.abc import Callable
from typing import Any

import httpx
from pydantic import SecretStr

from nothing_gpt.endpoint import checked_key
from nothing_gpt.errors import FatalError, TransientError
from nothing_gpt.replies import hidden

MODELS_TIMEOUT_S = 10.0
LOAD_TIMEOUT_S = 120.0
TRANSIENT_STATUSES = {408, 409, 429}


class NoAdapterThere(FatalError):
    """The server finds no adapter at the path that it was given."""


class VLLM:
    """One server, at `base_url` with or without `/v1`; `api_key` is what it was started with as `--api-key`.

    Raises FatalError for several addresses. Every method raises TransientError where nothing answers or the server is
    overloaded, and FatalError, saying what to change, where asking again would not help.
    """

    def __init__(self, base_url: str, api_key: str | None = None) -> None:
        if "," in base_url:
            raise FatalError(f"{base_url}: several addresses, and this is done at one server; give one of them")
        self.url = base_url.rstrip("/").removesuffix("/v1").rstrip("/")
        self._api_key = SecretStr(api_key or "")
        self._tls = httpx.create_ssl_context()

    def models(self) -> dict[str, str | None]:
        """Every name the server answers to, with its `root`: the adapter's (or base's) path on the server."""
        response = self._request("GET", "/v1/models", MODELS_TIMEOUT_S)
        if response.status_code != 200:
            raise self._refused(response)
        try:
            return {model["id"]: model.get("root") for model in response.json()["data"]}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise FatalError(
                f"{response.url} is not an OpenAI-compatible endpoint (answer: {self._excerpt(response.text)}); "
                "give the address that vLLM listens on"
            ) from None

    def load(self, name: str, path: str, in_place: bool = False) -> None:
        """Serve the adapter at `path` (on the *server*) as `name`; `in_place`: also over a served one.

        Raises NoAdapterThere, a FatalError, where the server finds none at the path.
        """
        body = {"lora_name": name, "lora_path": path, "load_inplace": in_place}
        response = self._request("POST", "/v1/load_lora_adapter", LOAD_TIMEOUT_S, body)
        if response.status_code == 200:
            return
        message = _error_message(response)
        if rank := re.search(r"LoRA rank (\d+) is greater than max_lora_rank:? (\d+)", message):
            raise FatalError(
                f"{path}: its LoRA rank {rank[1]} is above the server's maximum of {rank[2]}; "
                f"start vLLM with --max-lora-rank {rank[1]} or the next size it knows"
            )
        if response.status_code == 404 and message and message != "Not Found":
            raise NoAdapterThere(
                f"{path}: no adapter there on the server at {self.url}; it must hold adapter_config.json and "
                "be readable by the server, not only by this machine"
            )
        if "already been loaded" in message:
            raise FatalError(f"{self.url} already serves {name!r}; choose another name, or load it in place")
        # vLLM answers 500, not 400, to an adapter that it cannot take.
        if response.status_code == 500 and message:
            raise FatalError(f"{self.url} cannot load the adapter {path} as {name!r}: {self._excerpt(message)}")
        raise self._refused(response)

    def unload(self, name: str) -> None:
        """Stop serving the adapter `name`. Raises FatalError if it is not served."""
        response = self._request("POST", "/v1/unload_lora_adapter", MODELS_TIMEOUT_S, {"lora_name": name})
        if response.status_code == 404 and _error_message(response) not in ("", "Not Found"):
            raise FatalError(f"{self.url} serves no adapter {name!r}; it serves {', '.join(self.models())}")
        if response.status_code != 200:
            raise self._refused(response)

    def health(self) -> bool:
        """Whether the server is ready for requests; False, not an error, while nothing answers."""
        try:
            return self._request("GET", "/health", MODELS_TIMEOUT_S).status_code == 200
        except TransientError:
            return False

    def wait_until_healthy(
        self, timeout_s: float, alive: Callable[[], bool] = lambda: True, interval_s: float = 0.2
    ) -> None:
        """Return once ready. Raises TransientError after `timeout_s`, FatalError as soon as not `alive()`."""
        deadline = time.monotonic() + timeout_s
        while not self.health():
            if not alive():
                raise FatalError(f"the vLLM for {self.url} ended before it was ready; its log says why")
            if time.monotonic() > deadline:
                raise TransientError(f"{self.url} was not ready after {timeout_s:g} s; its log says why")
            time.sleep(interval_s)

    def _request(self, method: str, route: str, timeout_s: float, body: dict[str, Any] | None = None) -> httpx.Response:
        url = self.url + route
        key = checked_key(self._api_key, url)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            return httpx.request(method, url, json=body, headers=headers, timeout=timeout_s, verify=self._tls)
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise FatalError(f"{url!r} is no address ({error}); write http://host:port/v1") from None
        except httpx.TimeoutException:
            raise TransientError(f"{url} gave no answer within {timeout_s:g} s") from None
        except httpx.TransportError as error:
            raise TransientError(f"nothing answers at {url} ({error}); is vLLM running there?") from None

    def _refused(self, response: httpx.Response) -> FatalError | TransientError:
        """What any route's refusal means; the routes' own cases are dealt with before."""
        status, url = response.status_code, response.url
        if status in (401, 403):
            return FatalError(f"{url} refuses the API key ({status}); give the one vLLM was started with")
        if status == 404 and url.path.endswith("lora_adapter"):
            return FatalError(
                f"{url} does not exist: start vLLM with --enable-lora and, in its environment, "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
            )
        if status == 404:
            return FatalError(f"{url} does not exist (404); give the address that vLLM listens on")
        said = self._excerpt(_error_message(response) or response.text)
        if status in TRANSIENT_STATUSES or status >= 500:
            return TransientError(f"{url} answers {status}: {said}; it may pass")
        return FatalError(f"{url} refuses the request ({status}): {said}")

    def _excerpt(self, text: str, length: int = 200) -> str:
        """The beginning of what the server said, on one line and without the key."""
        line = " ".join(hidden(text, self._api_key.get_secret_value().strip()).split())
        return line if len(line) <= length else line[:length] + "..."


def _error_message(response: httpx.Response) -> str:
    """The message of vLLM's or FastAPI's error body, or "" where the body is neither."""
    try:
        body = response.json()
        return str(body["error"]["message"] if "error" in body else body["detail"])
    except (ValueError, KeyError, TypeError):
        return ""
