"""The processes that `--only=http` compares: a server, an engine without one, and the load client."""

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from serving.bench import MODEL, network

LONGEST = 1280
KV_BYTES = 256 << 20
SOURCES = ("mixattn/spec", "serving/fair", "serving/engine")
_ENGINE = "import sys; from serving.bench import http_sides; http_sides.answer_engine(sys.argv[1])"


def write_checkpoint(folder: Path) -> Path:
    """The demo's shapes with random weights, and a tokenizer of that many entries trained on our own code."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from mixattn import hf

    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MODEL.vocab_size,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    root = Path(__file__).resolve().parents[2]
    texts = [path.read_text() for room in SOURCES for path in sorted((root / room).glob("*.py"))]
    words.train_from_iterator(texts, trainer)
    hf.save(network(), folder, words, extra={"eos_token_id": 0})
    return folder


def pinned(command: Sequence[str], cores: Sequence[int]) -> list[str]:
    """The command on these cores only."""
    return ["taskset", "-c", ",".join(map(str, cores)), *command]


def environment(cores: Sequence[int]) -> dict[str, str]:
    return os.environ | {"JAX_PLATFORMS": "cpu", "NPROC": str(len(cores)), "OMP_NUM_THREADS": str(len(cores))}


class BenchServer:
    """A server process on these cores.

    Raises:
      ValueError: it did not start.
    """

    def __init__(
        self, checkpoint: Path, cores: Sequence[int], log: Path, *flags: str, module: str = "serving.http"
    ) -> None:
        self.log, self.cores = log, cores
        self._err = log.with_suffix(".err").open("w")
        command = [
            *(sys.executable, "-m", module, f"--checkpoint={checkpoint}", "--port=0"),
            *(f"--kv_memory={KV_BYTES}", f"--max_model_len={LONGEST}", f"--event_log={log}"),
            *("--limit_queued_requests=4096", *flags),
        ]
        self.process = subprocess.Popen(
            pinned(command, cores),
            env=environment(cores),
            stdout=subprocess.PIPE,
            stderr=self._err,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith("ready "):
            self.process.kill()
            self.process.communicate()
            self._err.close()
            said = log.with_suffix(".err").read_text().strip().splitlines()
            raise ValueError(f"the server did not start: {said[-1] if said else 'it said nothing'}")
        self.url = line.split()[1]

    def loop_cpu_s(self) -> float:
        """CPU seconds of the event loop's thread, which is the process's first."""
        pid = self.process.pid
        return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e9

    def resident_mib(self, field: str = "VmRSS") -> float:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))

    def stats(self) -> dict[str, Any]:
        """The engine's."""
        stats: dict[str, Any] = self.exchange("GET", "/get_server_info")["stats"]
        return stats

    def slots(self) -> int:
        return int(self.exchange("GET", "/get_server_info")["engine"]["max_slots"])

    def exchange(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The answer of one call.

        Raises:
          ValueError: its status is not 200.
        """
        at = urlsplit(self.url)
        connection = http.client.HTTPConnection(at.hostname or "", at.port, timeout=120)
        try:
            raw = None if body is None else json.dumps(body)
            connection.request(method, path, raw, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            raise ValueError(f"{path} answered {answer.status}: {content[:200]!r}")
        told: dict[str, Any] = json.loads(content)
        return told

    def stop(self) -> list[dict[str, Any]]:
        """Ends it; the engine's events."""
        self.process.terminate()
        self.process.communicate(timeout=60)
        self._err.close()
        return [json.loads(line) for line in self.log.read_text().splitlines()]


class BenchEngine:
    """An engine of the server's sizes in a process on these cores, which runs what it is told."""

    def __init__(self, checkpoint: Path, cores: Sequence[int]) -> None:
        self._process = subprocess.Popen(
            pinned([sys.executable, "-c", _ENGINE, str(checkpoint)], cores),
            env=environment(cores),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._ask: IO[str] = self._process.stdin  # type: ignore[assignment]
        self._told: IO[str] = self._process.stdout  # type: ignore[assignment]
        self._told.readline()

    def output_tok_per_s(self, **load: int) -> float:
        """Output tokens/s of `engine.run` on the requests that the load client sends for these flags."""
        print(json.dumps(load), file=self._ask, flush=True)
        return float(json.loads(self._told.readline()))

    def stop(self) -> None:
        self._ask.close()
        self._process.wait(60)


def answer_engine(checkpoint: str) -> None:
    """The engine's side of `BenchEngine`: one line of JSON in, one out."""
    import numpy as np

    from mixattn import hf
    from serving.bench.client.load import prompts_of
    from serving.bench.client.mix import ClientPlan
    from serving.engine.engine import Engine
    from serving.engine.program_cache import ProgramCache, default_folder
    from serving.http.startup import StartOptions, engine_config
    from serving.request import Request, Sampling

    path = Path(checkpoint)
    options = StartOptions(checkpoint=path, name="bench", kv_bytes=KV_BYTES, max_model_tok=LONGEST)
    net, model = hf.load(path)
    engine = Engine(
        net,
        engine_config(model, options, hf.stop_ids(path)),
        decode=hf.load_tokenizer(path).decode,
        program_cache=ProgramCache(default_folder()),
    )
    print("ready", flush=True)
    for line in sys.stdin:
        load = json.loads(line)
        plan = ClientPlan(
            requests=load["num_prompts"],
            input_len=load["random_input_len"],
            output_len=load["random_output_len"],
        )
        prompts = prompts_of(plan, model.vocab_size, np.random.default_rng(load["seed"]))
        requests = [
            Request(
                client="bench",
                id=f"{load['seed']}-{i}",
                prompt_ids=list(map(int, p.prompt)),
                sampling=Sampling(max_tokens=p.output_tok, ignore_eos=True),
            )
            for i, p in enumerate(prompts)
        ]
        began_s = time.perf_counter()
        outputs = engine.run(requests)
        tokens = sum(len(o.output_ids) for o in outputs)
        print(json.dumps(tokens / (time.perf_counter() - began_s)), flush=True)


def client(url: str, cores: Sequence[int], *flags: str, **load: int) -> dict[str, Any]:
    """What the load client tells of such a load.

    Raises:
      ValueError: it failed.
    """
    words = [f"--{name}={value}" for name, value in load.items()]
    command = [
        *(sys.executable, "-m", "serving.bench.client", f"--base_url={url}", "--json", "--ignore_eos"),
        *("--warmup_requests=0", *words, *flags),
    ]
    done = subprocess.run(
        pinned(command, cores), env=environment(cores), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ValueError(f"the load client failed: {done.stderr.strip()[-300:]}")
    told: dict[str, Any] = json.loads(done.stdout)
    return told
