"""Answers kept from run to run, in a SQLite file that several processes may share: `--cache`.

`file` is the file itself, used in a thread; `store` is what the layer speaks to, on the event loop. `wire`
opens it for a run, `batchllm cache` looks into it and prunes it. It knows digests and bytes, never requests.
"""

from batchllm.cache.file import CacheFile, Contents, open_cache, unusable
from batchllm.cache.store import Store, open_store

__all__ = ["CacheFile", "Contents", "Store", "open_cache", "open_store", "unusable"]
