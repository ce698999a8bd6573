"""What people see: progress while a run goes on, its final table, errors and events, on stderr alone.

It only samples: it changes nothing in a run and decides nothing about it. The cli calls it; Rich is
imported when something of its is drawn, never by importing this package.
"""

from batchllm.ui.ending import Facts, final
from batchllm.ui.events import JsonEvents
from batchllm.ui.figures import View
from batchllm.ui.messages import Notes, clean, error, say, warn
from batchllm.ui.progress import kind_for, show

__all__ = [
    "Facts",
    "JsonEvents",
    "Notes",
    "View",
    "clean",
    "error",
    "final",
    "kind_for",
    "say",
    "show",
    "warn",
]
