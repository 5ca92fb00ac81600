"""A config for tests: a random model of a few thousand parameters, three clients, two policies."""

from dataclasses import dataclass, field

from serving.config import EngineConfig, Limits
from serving.offline.clients import ClientProfile, Workload
from serving.offline.experiment import Serve


@dataclass
class Tiny:
    serve: Serve = field(default_factory=Serve)


def get_config() -> Tiny:
    engine = EngineConfig(
        max_slots=4,
        page_size=4,
        max_request_tok=48,
        prefill_rows=(4,),
        limits=Limits(chunk_tok=16, step_tok=32),
    )
    clients = [
        ClientProfile(name="flood", size=10, prompt_tok=(4, 12), output_tok=(4, 8)),
        ClientProfile(
            name="bursty", bursts=2, size=3, every=4, prompt_tok=(16, 20), output_tok=(2, 6), shared_tok=12
        ),
    ]
    policies = {"fcfs": {}, "vtc": {}}
    return Tiny(Serve(engine=engine, workload=Workload(clients=clients), policies=policies))
