"""Our own providers, sinks and sources pass the suites that are offered to those who write others."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from batchllm.ports import Provider, ProviderSpec
from batchllm.providers import fake, openai
from batchllm.sinks import JsonlFile
from batchllm.sources import JsonlSource
from batchllm.testing import ProviderContract, SinkContract, SourceContract
from tests.serving import simulated


class TestFake(ProviderContract):
    def provider(self) -> AbstractAsyncContextManager[Provider]:
        return fake.connect(ProviderSpec("echo"))


class TestOpenAI(ProviderContract):
    def provider(self) -> AbstractAsyncContextManager[Provider]:
        return _served()


@asynccontextmanager
async def _served() -> AsyncIterator[Provider]:
    with simulated() as server:
        async with openai.connect(ProviderSpec("any", base_url=server.url)) as provider:
            yield provider


class TestJsonlFile(SinkContract):
    def sink(self, path: Path) -> JsonlFile:
        return JsonlFile(str(path))


class TestJsonlSource(SourceContract):
    def source(self) -> JsonlSource:
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl", delete=False) as file:
            file.write('{"id":1}\n\n{"id":2}\nnot json\n{"id":3}\n')
        return JsonlSource([file.name])
