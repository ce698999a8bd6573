"""docs/python.md: each example runs as it stands, against a server that answers."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running import LONGEST_S, ROOT, environment, tickets, write
from tests.serving import Simulated, simulated

EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)
README = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
SAID = {
    "job": "0 30 answers in tickets.out.jsonl\n",
    "files": "",
    "async": "done\n",
    "stream": "".join(f"{n} echo: Where is parcel {n}?\n" for n in range(100)),
    "resumed": "were still to be asked; 0 are now\n",
    "map": "Oslo 4\nRome 4\nAtlantis LookupError('it has sunk')\nLima 4\n",
}


@pytest.fixture(scope="module")
def server() -> Iterator[Simulated]:
    with simulated() as running:
        yield running


def said(code: str, folder: Path, server: Simulated) -> str:
    write(folder / "tickets.jsonl", tickets(30))
    (folder / "triage.toml").write_text('model = "openai/gpt-4o-mini"\n')
    account = {"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": server.url}
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=folder,
        env=environment(folder, account),
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
    )
    assert (ran.stderr, ran.returncode) == ("", 0)
    return ran.stdout


@pytest.mark.parametrize(("name", "code"), list(zip(SAID, EXAMPLES, strict=True)), ids=list(SAID))
def test_an_example_runs_as_it_stands(name: str, code: str, tmp_path: Path, server: Simulated) -> None:
    out, expected = said(code, tmp_path, server), SAID[name]

    if name == "resumed":
        assert out.endswith(expected)
    elif name == "stream":
        assert sorted(out.splitlines()) == sorted(expected.splitlines())
    else:
        assert out == expected


def test_the_example_of_the_readme_runs_as_it_stands(tmp_path: Path, server: Simulated) -> None:
    (code,) = README

    assert said(code, tmp_path, server) == "0 30\n"
