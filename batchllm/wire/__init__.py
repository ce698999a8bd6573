"""The composition root: a Job becomes live objects. The only room that imports concretions.

`places` decides which files a run uses, `resume` whether it may go on where an earlier one stopped,
`registry` which provider a name means, and `build` puts the parts together.
"""

from batchllm.wire.build import Finished, Live, build
from batchllm.wire.registry import PROVIDERS, provider_of

__all__ = ["PROVIDERS", "Finished", "Live", "build", "provider_of"]
