"""Requests to a cluster's API server: JSON in, JSON out, within a time limit; faults that pass told from answers.

Objects stay the API's own JSON, as `kubectl get -o json` shows it: the client's models would refuse what another
version of the server leaves out, and its method for logs does not know `sinceTime`.
"""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException
from urllib3.exceptions import HTTPError
from yaml import YAMLError

from nothing_gpt.errors import FatalError, TransientError

Query = str | int | bool | None
Result = TypeVar("Result")

EXPIRED = 401
"""Status while credentials are renewed. Those that stay bad end a wait as an outage does."""
FORBIDDEN = 403


class Refused(FatalError):
    """The API server's answer is no; `status` is its HTTP status."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


class Api:
    """One namespace of a cluster, with the credentials of a kubeconfig's context or of the pod that this runs in.

    Every method raises TransientError where the server cannot be reached, is too slow or overloaded, and Refused.
    """

    def __init__(self, context: str | None, namespace: str, timeout_s: float = 10.0):
        """Raises FatalError where nothing says which cluster."""
        self.namespace = namespace
        self._timeout_s = timeout_s
        self._client = _connect(context)
        self._streams: set[Any] = set()
        self._lock = threading.Lock()

    @property
    def server(self) -> str:
        return self._client.configuration.host

    def get(self, path: str, **query: Query) -> dict[str, Any]:
        return self._json("GET", path, query)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._json("POST", path, {}, body)

    def delete(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._json("DELETE", path, {}, body)

    def lines(self, path: str, quiet_s: float, stop: threading.Event, **query: Query) -> Iterator[str]:
        """The lines of an answer that goes on, as they come, to its end; silence for `quiet_s` is a fault. Another
        thread ends it with `stop` and then `hang_up`."""
        response = self._send("GET", path, query, None, (self._timeout_s, quiet_s)).response
        with self._lock:
            self._streams.add(response)
        try:
            if stop.is_set():
                return
            rest = b""
            for chunk in response.stream(amt=None, decode_content=False):
                *whole, rest = (rest + chunk).split(b"\n")
                yield from (line.decode(errors="replace") for line in whole)
            if rest:
                yield rest.decode(errors="replace")
        except (HTTPError, OSError, ValueError) as error:  # ValueError: the connection was closed under the reader
            raise self._away(error) from None
        finally:
            with self._lock:
                self._streams.discard(response)
            response.close()

    def hang_up(self) -> None:
        """Breaks off all that `lines` reads."""
        with self._lock:
            for response in self._streams:
                with contextlib.suppress(Exception):  # it ends by itself at this moment
                    response.shutdown()

    def _json(self, method: str, path: str, query: dict[str, Query], body: dict[str, Any] | None = None) -> Any:
        response = self._send(method, path, query, body, (self._timeout_s, self._timeout_s))
        try:
            return json.loads(response.read())
        except (HTTPError, OSError, ValueError) as error:
            raise self._away(error) from None

    def _send(self, method: str, path: str, query: dict[str, Query], body: Any, timeout: tuple[float, float]) -> Any:
        given = [
            (key, str(value).lower() if value is True else value) for key, value in query.items() if value is not None
        ]
        try:
            request = self._client.param_serialize(
                method=method,
                resource_path=path,
                query_params=given,
                header_params={"Accept": "application/json, */*", "Content-Type": "application/json"},
                body=body,
                auth_settings=["BearerToken"],
            )
            response = self._client.call_api(*request, _request_timeout=timeout)
            if response.status < 300:
                return response
            reason = _message(response.read())
        except (HTTPError, OSError, ApiException) as error:
            raise self._away(error) from None
        if response.status == 429 or response.status >= 500:
            raise TransientError(f"the cluster at {self.server} answers {response.status}: {reason}")
        todo = self._todo(response.status)
        raise Refused(
            f"the cluster at {self.server} refuses {method} {path}: {response.status} {reason}{todo}", response.status
        )

    def _todo(self, status: int) -> str:
        settings = self._client.configuration
        if status in (EXPIRED, FORBIDDEN) and not (settings.api_key or settings.cert_file or settings.username):
            # What fails to run, or prints none, is only logged by the client.
            return (
                "; no credentials came from the kubeconfig, see that the program it names for them works "
                "(GKE's: `gcloud components install gke-gcloud-auth-plugin`)"
            )
        return "; renew your credentials (`gcloud auth login`)" if status == EXPIRED else ""

    def _away(self, error: Exception) -> TransientError:
        cause = getattr(error, "reason", None) or error  # urllib3 wraps what happened
        return TransientError(f"the cluster at {self.server} does not answer ({' '.join(str(cause).split())[:200]})")


def patiently(call: Callable[[], Result], limit_s: float, say: Callable[[str], None]) -> Result:
    """What the call returns, tried again while the cluster does not answer or credentials are renewed.

    Raises TransientError, or Refused of credentials, after `limit_s` of that; what else the call raises.
    """
    deadline, wait = time.monotonic() + limit_s, 0.5
    while True:
        try:
            return call()
        except (TransientError, Refused) as error:
            if isinstance(error, Refused) and error.status != EXPIRED:
                raise
            if time.monotonic() + wait > deadline:
                raise
            if wait == 0.5:
                say(f"{error}; trying again for {limit_s / 60:.0f} minutes")
        time.sleep(wait)
        wait = min(wait * 2, 10.0)


def _connect(context: str | None) -> client.ApiClient:
    settings = client.Configuration()
    try:
        # KUBECONFIG as it is now; the client looks at it once, when it is imported.
        config.load_kube_config(os.environ.get("KUBECONFIG"), context, settings, persist_config=False)
    except (ConfigException, OSError, YAMLError, TypeError, AttributeError, KeyError) as error:  # no kubeconfig at all
        try:
            if context:
                raise
            config.load_incluster_config(settings)
        except ConfigException:
            raise FatalError(
                f"no cluster: {' '.join(str(error).split())[:300]}; run `gcloud container clusters get-credentials "
                "CLUSTER --location LOCATION`, or set KUBECONFIG or place.gke.context"
            ) from None
    settings.retries = False  # ours are slower, and say so
    return client.ApiClient(settings)


def _message(body: bytes) -> str:
    try:
        return json.loads(body)["message"]
    except (ValueError, KeyError, TypeError):
        return " ".join(body.decode(errors="replace").split())[:300]
