"""Serves a model by OpenAI's HTTP protocol, fair by client.

    python -m serving.http --checkpoint=runs/demo/model --port=8000
    python -m serving.http --checkpoint=models/smollm2 --port=8000 --kv_memory=512MiB
    python -m serving.http --checkpoint=models/smollm2 --port=8000 --host=0.0.0.0 --api_keys=keys.txt
    curl http://127.0.0.1:8000/v1/completions -H "Content-Type: application/json" -d '{"prompt": "def f("}'

A checkpoint is a Hugging Face directory or a GGUF file. The engine's sizes follow from it and --kv_memory;
--engine.FIELD=VALUE overrides any field of the engine's config, e.g. --engine.max_slots=32. The socket opens
at once and /ready answers 503 until everything is compiled; then one line says `ready URL model NAME`.

Clients are told apart by `user`, else the header X-Client-Id, else their address. With --api_keys a client is
a key: a file of lines `name sha256 [weight] [limits]`, read again on SIGHUP, where limits are
inflight=NUMBER, tokens_per_minute=NUMBER, priority, admin. SIGTERM or Ctrl-C drains, a second one ends.

/dashboard shows who is served, /metrics says it to Prometheus, /openapi.json lists the routes.
"""

import sys

from absl import logging

from mixattn.tools import cli
from serving.http import command
from serving.http.settings import HELP, HttpLimits

command.define_flags(HttpLimits, HELP)


def main() -> None:
    sys.exit(command.serve())


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    cli.run(main, command.split_overrides(sys.argv))
