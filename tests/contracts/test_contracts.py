"""Our own providers, sinks and sources pass the suites that are offered to those who write others."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import httpx

from batchllm.ports import Provider, ProviderSpec
from batchllm.providers import fake, openai
from batchllm.sinks import JsonlFile
from batchllm.sources import JsonlSource
from batchllm.testing import ProviderContract, SinkContract, SourceContract
from batchllm.transport import Transport, open_endpoint
from tests.serving import simulated


class TestFake(ProviderContract):
    def provider(self) -> AbstractAsyncContextManager[Provider]:
        return fake.connect(ProviderSpec("echo"))


class TestOpenAI(ProviderContract):
    def provider(self) -> AbstractAsyncContextManager[Provider]:
        return _served()


class TestOpenAIOverStock(ProviderContract):
    def provider(self) -> AbstractAsyncContextManager[Provider]:
        return _served(http="stock")


class TestOpenAIOverATransportOfTheUsers(ProviderContract):
    def provider(self) -> AbstractAsyncContextManager[Provider]:
        return _served_over(httpx.AsyncHTTPTransport())


class TestOpenAIOverOurTransportInHttpx(ProviderContract):
    def provider(self) -> AbstractAsyncContextManager[Provider]:
        return _served_over(Transport())


@asynccontextmanager
async def _served(http: str = "own") -> AsyncIterator[Provider]:
    with simulated() as server:
        async with openai.connect(ProviderSpec("any", base_url=server.url, http=http)) as provider:
            yield provider


@asynccontextmanager
async def _served_over(transport: httpx.AsyncBaseTransport) -> AsyncIterator[Provider]:
    with simulated() as server:
        url, spec = openai.address(server.url), ProviderSpec("any", base_url=server.url)
        async with open_endpoint(url, {}, limit=20, transport=transport) as endpoint:
            yield openai.OpenAI(endpoint, spec)


class TestJsonlFile(SinkContract):
    def sink(self, path: Path) -> JsonlFile:
        return JsonlFile(str(path))


class TestJsonlSource(SourceContract):
    def source(self) -> JsonlSource:
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl", delete=False) as file:
            file.write('{"id":1}\n\n{"id":2}\nnot json\n{"id":3}\n')
        return JsonlSource([file.name])
