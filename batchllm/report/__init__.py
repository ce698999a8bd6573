"""What a run came to, from its files alone: totals, and its variants side by side.

`comparing` reads output and dead letters once: `rows` checks a line, `labels` names a value, `tally` holds
the figures of one variant, `pairing` finds the records that two variants answered. `standing` says how far
the run is. It writes nothing and calls nobody; `cli` prints what it finds, `wire` asks when a run ends.
"""

from batchllm.report.comparing import Comparison, compare
from batchllm.report.pairing import Pair
from batchllm.report.standing import had_written, standing
from batchllm.report.tally import Accuracy, Tally

__all__ = ["Accuracy", "Comparison", "Pair", "Tally", "compare", "had_written", "standing"]
