"""The steps of the tickets sample that are no model: looking at a ticket, and posting the answer."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from batchllm.errors import Overloaded

THANKS = ("thanks", "thank you")


def check(record: dict[str, Any]) -> dict[str, Any]:
    """How long a ticket is, and whether anybody waits for an answer; a ticket without a text is none."""
    words = record["text"].split()
    if not words:
        raise ValueError("the ticket has no text")
    return {"words": len(words), "wants_reply": not record["text"].lower().startswith(THANKS)}


@asynccontextmanager
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """The connection to the ticket service, open for the whole run."""
    async with httpx.AsyncClient(base_url=os.environ["TICKETS_URL"]) as made:
        yield made


async def post(
    record: dict[str, Any], answers: dict[str, Any], key: str, resource: httpx.AsyncClient
) -> dict[str, Any]:
    """Put the draft into the ticket service, which takes each key once. Connections that fail are retried."""
    draft = answers["draft"]
    answer = await resource.post(
        "/tickets", json={"ticket": record["id"], **draft}, headers={"idempotency-key": key}
    )
    if answer.status_code >= 500:
        raise Overloaded(f"the ticket service says {answer.status_code}", status=answer.status_code)
    answer.raise_for_status()
    return {"number": answer.json()["number"]}
