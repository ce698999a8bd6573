"""The rehearsal server: an OpenAI- and Anthropic-compatible endpoint here, with latency, limits and faults.

`server.serve` runs it; `asks` reads requests, `answers` and `instances` make the answers, `problems` and
`bodies` the refusals, `quota` keeps the limits and `headers` tells them, `load` queues and overloads,
`counts` and `history` remember, `app` ties them together. Nothing here ever calls a real model.
"""
