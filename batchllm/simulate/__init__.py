"""The rehearsal server: an OpenAI-compatible endpoint on this machine, with latency, limits and faults.

`server.serve` runs it; `asks` reads requests, `answers` and `instances` make the answers, `problems` the
refusals, `quota` keeps the limits, `app` ties them together. Nothing here ever calls a real model.
"""
