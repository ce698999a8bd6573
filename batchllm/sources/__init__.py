"""Where records come from: files, packed files, pipes and programs, each record under each variant.

`check_inputs` refuses what is no JSONL before a run; `fingerprint` and `differs` tell whether an input is
still the same; `Variants` stands before a source where a run compares some.
"""

from batchllm.sources.checks import check_inputs
from batchllm.sources.identity import differs, fingerprint
from batchllm.sources.jsonl import BEGINNING, JsonlSource
from batchllm.sources.shapes import FORMATS
from batchllm.sources.variants import Variants

__all__ = ["BEGINNING", "FORMATS", "JsonlSource", "Variants", "check_inputs", "differs", "fingerprint"]
