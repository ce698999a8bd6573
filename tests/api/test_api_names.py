"""The public names: seen by type checkers, imported when they are wanted, and none of the table forgotten."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import batchllm
from batchllm.api.settings import Settings
from batchllm.job import settings
from tests.running import ROOT, environment


def test_the_keywords_are_the_table_of_settings() -> None:
    """A new setting of the table has its line in `api/settings.py`, where type checkers find it."""
    assert set(Settings.__annotations__) == set(settings())


def test_type_checkers_see_names_settings_items_and_results() -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "tests/api/typed.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert checked.returncode == 0, checked.stdout


LAZY = """
import sys
import batchllm
assert {"run", "run_async", "stream", "map", "Outcome", "Result", "errors"} <= set(dir(batchllm))
assert not [name for name in sys.modules if name.startswith(("batchllm.", "anyio", "asyncio"))]
import batchllm.cli.session
assert "batchllm.api" not in sys.modules
from batchllm import run, stream, map
assert run is batchllm.run and callable(run) and callable(map) and callable(stream)
assert batchllm.errors.ConfigError
"""


def test_importing_batchllm_imports_nothing_more_and_the_command_line_never_the_api(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", LAZY], env=environment(tmp_path), capture_output=True, text=True, timeout=60
    )
    assert ran.stderr == ""
    assert ran.returncode == 0


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'sream'"):
        batchllm.sream  # type: ignore[attr-defined]  # noqa: B018
