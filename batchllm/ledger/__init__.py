"""The only writer of a run's files: outcomes in, groups committed, and where to go on after any end.

`Ledger` is the task at the end of the main path; `Journal` knows index, snapshot and recovery; `ordering`
puts the finished output into input order. What is shown, reported or resumed derives from what it committed.
"""

from batchllm.ledger.folder import RunFolder, move_aside
from batchllm.ledger.journal import Journal, State, restore
from batchllm.ledger.ledger import Ledger
from batchllm.ledger.reorder import Reorder
from batchllm.ledger.settled import Settled
from batchllm.ledger.stages import Noted, read_notes

__all__ = [
    "Journal",
    "Ledger",
    "Noted",
    "Reorder",
    "RunFolder",
    "Settled",
    "State",
    "move_aside",
    "read_notes",
    "restore",
]
