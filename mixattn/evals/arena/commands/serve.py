"""Runs the arena: a website where people compare models and vote, on this machine's loopback address.

    python -m mixattn.evals arena serve --models=models.toml --db=arena.sqlite --port=8700
    ARENA_ADMIN_TOKEN=... python -m mixattn.evals arena serve ...                 with the page /admin
    python -m mixattn.evals arena serve --demo --db=demo.sqlite
        three scripted models, to look around

models.toml has one [[model]] for each model, with name and base_url (a server of OpenAI's chat protocol),
perhaps model, key_env, weight and aliases; or with engine = "a checkpoint directory", which this project's
engine serves in a process of its own; or with scripted = "a fixed answer". Votes are on disk before they are
acknowledged; kill the server at any moment and start it again with the same --db. For a public arena set
--count_delay_s, --min_vote_s, --max_move, --honeypots and perhaps --work_bits; behind a proxy --behind_proxy.
"""

import sys
from pathlib import Path

from absl import flags

from mixattn.evals.arena.commands import command_line
from mixattn.evals.arena.platform.app import make_app
from mixattn.evals.arena.platform.arena import ArenaPlatform, PlatformConfig
from mixattn.evals.arena.platform.catalog import ArenaModel, read_catalog
from mixattn.evals.arena.platform.drawing import RULES
from mixattn.evals.arena.platform.store import ArenaStore
from mixattn.evals.arena.platform.work import MAX_BITS

FLAGS = flags.FLAGS
SWITCH_S = 0.0005  # a thread that ranks, or that was told of a flush, gives way to pages this soon
DEMO = (
    ArenaModel("plain", scripted="A short answer without decoration.", delay_s=0.1),
    ArenaModel("wordy", scripted="A longer answer. " * 12 + "It says little.", delay_s=0.02),
    ArenaModel("broken", scripted="An answer that breaks off in the middle of", delay_s=0.1, fails=6),
)


def start(argv: list[str]) -> None:
    flags.DEFINE_string("models", None, "TOML file of the models.")
    flags.DEFINE_bool("demo", False, "Use three scripted models instead of --models.")
    flags.DEFINE_string("db", "arena.sqlite", "Database; made if absent.")
    flags.DEFINE_integer("port", 8700, "Port; 0 takes a free one.", 0, 65535)
    flags.DEFINE_string("host", "127.0.0.1", "Address to listen on.")
    flags.DEFINE_float("answer_limit_s", 120.0, "Time limit of one answer, in seconds.", 0.1)
    flags.DEFINE_integer("per_minute", 30, "Battles that one session may start in a minute.", 1)
    flags.DEFINE_integer("per_minute_address", 120, "Battles that one address may start in a minute.", 1)
    flags.DEFINE_float("cap", 100.0, "No voter counts for more than this many votes.", 1.0)
    flags.DEFINE_float("max_move", 0.0, "No voter moves a rating by more Elo points; 0: no limit.", 0.0)
    flags.DEFINE_enum(
        "sampling", "weights", RULES, "Pairs by the models' weights, or by what is least known."
    )
    flags.DEFINE_integer(
        "work_bits", 0, "Zero bits of a proof of work before a battle; 0: none.", 0, MAX_BITS
    )
    flags.DEFINE_bool("behind_proxy", False, "Take visitors' addresses from the header X-Forwarded-For.")
    flags.DEFINE_float(
        "count_delay_s", 0.0, "Mean of the random delay after which a vote counts, in seconds.", 0.0
    )
    flags.DEFINE_float("min_vote_s", 0.0, "A vote sooner after the prompt is kept and not counted.", 0.0)
    flags.DEFINE_integer("same_prompt", 20, "Battles of one voter with one prompt that count.", 1)
    flags.DEFINE_float(
        "honeypots",
        0.0,
        "Share of battles that test the voter: a model against itself, or a broken one.",
        0.0,
        0.5,
    )
    command_line.run(__name__, _main, argv)


def _main() -> None:
    import uvicorn

    if FLAGS.demo == bool(FLAGS.models):
        raise ValueError("give either --models=models.toml or --demo")
    models = list(DEMO) if FLAGS.demo else read_catalog(FLAGS.models)
    config = PlatformConfig(
        **{name: FLAGS[name].value for name in PlatformConfig.__dataclass_fields__ if name != "seed"}
    )
    db = Path(FLAGS.db)
    if not db.parent.is_dir():
        raise ValueError(f"--db={db} lies in a folder that does not exist")
    sys.setswitchinterval(SWITCH_S)
    store = ArenaStore(db)
    app = make_app(ArenaPlatform(models, store, config))
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            FLAGS.host,
            FLAGS.port,
            log_level="warning",
            server_header=False,
            proxy_headers=FLAGS.behind_proxy,  # else a visitor could claim any address
        )
    )
    listening = server.config.bind_socket()
    listening.listen(2048)  # a visitor who comes before uvicorn is ready waits
    print(
        f"arena of {len(models)} models on http://{FLAGS.host}:{listening.getsockname()[1]}/",
        file=sys.stderr,
        flush=True,
    )
    try:
        server.run([listening])
    finally:
        store.close()
