"""The composition root: a Job becomes live objects. The only room that imports concretions.

`places` decides which files a run uses, `opening` opens its folder, `resume` says whether it may go on where
an earlier one stopped, `later` which records are asked again, `registry` which provider a name means,
`asking` what is asked; `build` puts the parts together into a `Live`.
"""

from batchllm.wire.build import Again, build
from batchllm.wire.live import Finished, Live
from batchllm.wire.opening import stored_job
from batchllm.wire.places import letters_beside
from batchllm.wire.registry import PROVIDERS, provider_of

__all__ = [
    "PROVIDERS",
    "Again",
    "Finished",
    "Live",
    "build",
    "letters_beside",
    "provider_of",
    "stored_job",
]
