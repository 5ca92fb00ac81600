"""OpenAI's HTTP protocol over the engine: fair by client, hard to hurt.

A request's way: `protocol` (bytes, timers) -> `app` (routes) -> `wire` (JSON to fields) -> `prompts` (text to
ids) -> `service` (admission, one `ActiveCall`) -> `loop` (the engine's thread) and back through `answers`.
"""
