"""flexllm's batch call with its own results file; `flexllm_batch.py INPUT OUTPUT URL CONCURRENCY`.

Its limit of requests a second is set out of reach, and its progress bar and cache are off.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from flexllm import LLMClient

PROMPT = "Classify this customer question into one of 77 categories.\nQuestion: "


async def main(given: str, output: str, url: str, concurrency: int) -> None:
    """Ask for every record."""
    with Path(given).open() as lines:
        asked = [[{"role": "user", "content": PROMPT + json.loads(line)["text"]}] for line in lines]
    async with LLMClient(
        model="bench", base_url=url, api_key="none", concurrency_limit=concurrency, max_qps=1_000_000
    ) as client:
        results = await client.chat_batch(asked, output_jsonl=output, show_progress=False)
    results.raise_for_errors()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4], int(sys.argv[4])))
