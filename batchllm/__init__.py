"""batchllm: a file of records and an LLM endpoint in, every record answered or accounted for out.

From Python: `run` for a job, `stream` for records, `map` for a function (docs/python.md); they are imported
when they are first asked for. `errors` are what they raise.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchllm import errors as errors
    from batchllm.api import Outcome, Result, map, run, run_async, stream

__all__ = ["Outcome", "Result", "errors", "map", "run", "run_async", "stream"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    if name == "errors":
        return importlib.import_module("batchllm.errors")
    return getattr(importlib.import_module("batchllm.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
