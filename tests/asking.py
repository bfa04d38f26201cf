"""Asking an endpoint in the tests: a list of texts through the client, and what became of each."""

import asyncio
from collections.abc import Sequence

from nothing_gpt.config import EndpointSettings, Price
from nothing_gpt.endpoint import Endpoint, Service
from nothing_gpt.errors import BadRowError, NothingGPTError
from nothing_gpt.replies import Reply


class Run:
    """Asks an endpoint the texts, each for n completions: what came back, what was set aside and how it ended."""

    endpoint: Endpoint

    def __init__(
        self,
        service: Service,
        texts: Sequence[str],
        n: int = 1,
        concurrency: int = 8,
        max_tokens: int = 100,
        price: Price | None = None,
        max_cost_usd: float | None = None,
        answered_by: str | None = None,
        kept: Sequence[Reply] = (),
        others_usd: float = 0.0,
    ):
        self.replies: dict[str, Reply] = {}
        self.aside: dict[str, str] = {}
        self.error: NothingGPTError | None = None
        settings = EndpointSettings(
            concurrency=concurrency,
            prices={service.model: price} if price else {},
            max_cost_usd=max_cost_usd,
        )

        async def run() -> None:
            async with Endpoint(service, settings, "judge", answered_by) as self.endpoint:
                self.endpoint.meter.others_usd = others_usd
                for reply in kept:
                    self.endpoint.meter.recall(reply)

                async def handle(text: str) -> None:
                    try:
                        self.replies[text] = await self.endpoint.chat(
                            [{"role": "user", "content": text}], max_tokens, n
                        )
                    except BadRowError as error:
                        self.aside[text] = str(error)

                await self.endpoint.each(texts, lambda _: n, handle)

        try:
            asyncio.run(run())
        except NothingGPTError as error:
            self.error = error
        shown = [*self.aside.values(), str(self.error)]
        assert not any("\n" in line for line in shown)


def texts(count: int) -> list[str]:
    return [f"t{number}" for number in range(count)]
