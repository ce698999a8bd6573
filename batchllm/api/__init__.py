"""The same from Python: `run` for a job, `stream` for records, `map` for a function; docs/python.md.

It composes what the command line composes, writes nothing to stdout or stderr, heeds no signal and asks
nobody. `batchllm` exports its names when they are first asked for.
"""

import logging

from batchllm.api.mapping import map
from batchllm.api.outcome import Outcome
from batchllm.api.running import Result, run, run_async
from batchllm.api.streaming import stream

__all__ = ["Outcome", "Result", "map", "run", "run_async", "stream"]

logging.getLogger("batchllm").addHandler(logging.NullHandler())  # else warnings would go to stderr
