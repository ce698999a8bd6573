"""The local provider: what it refuses before a process starts, and the child's life where one can be run."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from batchllm.errors import ConfigError, FatalError
from batchllm.model import Reply, Request, Trail
from batchllm.ports import ProviderSpec
from batchllm.providers import local

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 60.0


def refusal(model: str) -> ConfigError:
    async def main() -> None:
        async with local.connect(ProviderSpec(model=model)):
            pass

    with pytest.raises(ConfigError) as caught:
        anyio.run(main)
    return caught.value


def test_an_unknown_name_is_refused_with_the_names_that_work() -> None:
    error = refusal("llama-99")
    assert "llama-99" in error.message
    assert "local/smollm2" in (error.hint or "")


def test_a_missing_model_file_is_refused_by_its_path(tmp_path: Path) -> None:
    error = refusal(str(tmp_path / "none.gguf"))
    assert "none.gguf" in error.message
    assert "check the path" in (error.hint or "")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert "can't read" in refusal(f"{tmp_path}/").message


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04 a zip")
    assert "no GGUF" in refusal(str(path)).message


@pytest.mark.skipif(local.installed("xllamacpp"), reason="the engine is installed")
def test_without_the_engine_the_hint_installs_it(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    error = refusal(str(path))
    assert "xllamacpp" in error.message
    assert "batchllm models install local" in (error.hint or "")


@pytest.mark.skipif(local.default_model() is not None, reason="the model is installed")
def test_without_the_model_the_hint_installs_it() -> None:
    for name in local.DEFAULT_NAMES:
        assert "batchllm models install local" in (refusal(name).hint or "")


def test_a_gguf_file_is_found_and_answers_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "tiny.Q4_1.gguf"
    path.write_bytes(b"GGUF")
    assert local.find_model(str(path)) == local.Model(path, "tiny.Q4_1")


def test_the_server_program_imports_nothing_of_batchllm() -> None:
    program = (ROOT / "batchllm/providers/local_server.py").read_text()
    assert "import batchllm" not in program
    assert "from batchllm" not in program


def engine() -> None:
    pytest.importorskip("xllamacpp")
    if local.default_model() is None:
        pytest.skip("the model is not installed")


def watch(pid: int) -> Callable[[], bool]:
    """A function that waits until that process is gone and says whether it went."""
    if not hasattr(os, "pidfd_open"):
        pytest.skip("no pidfd on this system")
    handle = os.pidfd_open(pid)

    def gone() -> bool:
        try:
            return bool(select.select([handle], [], [], PATIENCE_S)[0])
        finally:
            os.close(handle)

    return gone


def test_answers_satisfy_the_schema_and_the_child_ends_with_the_context() -> None:
    engine()
    schema = {
        "type": "object",
        "properties": {"mood": {"enum": ["glad", "angry"]}},
        "required": ["mood"],
        "additionalProperties": False,
    }
    replies: list[Reply] = []
    gone: list[Callable[[], bool]] = []

    async def main() -> None:
        async with local.connect(ProviderSpec(model="smollm2")) as provider:
            assert isinstance(provider, local.Local)
            assert provider.ceiling == local.SLOTS + 1
            gone.append(watch(provider.pid))

            async def ask(text: str) -> None:
                # room for all the blanks that the engine's grammar allows, so that it ends by itself
                body = {"messages": [{"role": "user", "content": text}], "max_tokens": 250}
                replies.append(
                    await provider.complete(Request("smollm2", body, f"k-{len(text)}", schema), Trail())
                )

            async with anyio.create_task_group() as group:
                group.start_soon(ask, "The lamp is broken!")
                group.start_soon(ask, "Thank you so much.")

    anyio.run(main)
    assert gone[0]()
    assert len(replies) == 2
    for reply in replies:
        assert json.loads(reply.text)["mood"] in ("glad", "angry")
        assert reply.finish == "stop"
        assert reply.usage.output_tokens > 0


def test_a_server_that_dies_stops_the_run_with_the_reason() -> None:
    engine()
    caught: list[FatalError] = []

    async def main() -> None:
        async with local.connect(ProviderSpec(model="smollm2")) as provider:
            assert isinstance(provider, local.Local)
            gone = watch(provider.pid)
            os.kill(provider.pid, signal.SIGKILL)
            assert await anyio.to_thread.run_sync(gone)
            request = Request("smollm2", {"messages": [{"role": "user", "content": "hi"}]}, "k")
            try:
                await provider.complete(request, Trail())
            except FatalError as error:
                caught.append(error)

    anyio.run(main)
    assert "signal 9" in caught[0].message


def test_the_child_ends_when_its_parent_is_killed() -> None:
    engine()
    program = (
        "import anyio\n"
        "from batchllm.ports import ProviderSpec\n"
        "from batchllm.providers import local\n"
        "async def main():\n"
        "    async with local.connect(ProviderSpec(model='smollm2')) as provider:\n"
        "        print(provider.pid, flush=True)\n"
        "        await anyio.sleep_forever()\n"
        "anyio.run(main)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    with parent, parent.stdout:
        gone = watch(int(parent.stdout.readline()))
        parent.kill()
        assert gone()


def test_a_model_that_cannot_be_loaded_is_refused_with_the_engine_s_words(tmp_path: Path) -> None:
    engine()
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + b"\xff" * 400)
    error = refusal(str(path))
    assert "did not start" in error.message
    assert "GGUF" in error.message
