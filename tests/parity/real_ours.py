"""Our side of `python -m serving.bench --only=real`; see `real_peer`.

load: {"model": GGUF file or folder, "quantize": "int8", "requests": 16, "longest": 192, "chunk": 128,
"programs": DIR}. The engine holds exactly these requests, in pages of 64 tokens.
"""

import sys
from pathlib import Path
from typing import Any

from real_peer import Answer, TokenTimes, serve

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
PAGE = 64


def load(about: dict[str, Any]) -> tuple[Any, str]:
    import jax

    from mixattn import hf
    from serving.config import EngineConfig, Limits
    from serving.engine.engine import Engine
    from serving.engine.program_cache import ProgramCache

    jax.config.update("jax_platforms", "cpu")
    requests, longest, chunk = about["requests"], about["longest"], about["chunk"]
    model, _ = hf.load(about["model"], quantize=about["quantize"])
    config = EngineConfig(
        max_slots=requests,
        page_size=PAGE,
        num_pages=requests * -(-longest // PAGE) + 1,
        max_request_tok=longest,
        prefill_rows=(1,),
        chunk_sizes=(chunk,),
        limits=Limits(chunk_tok=chunk, step_tok=chunk, decode_steps=(8, 4, 1), mixed=False),
        reuse=False,
    )
    cache = ProgramCache(Path(about["programs"]))
    engine = Engine(model, config, program_cache=cache)
    kept = "programs kept" if cache.hits == len(engine.programs.compile_s) else "programs compiled"
    return engine, f"mixattn, jax {jax.__version__}; {kept}"


def run(engine: Any, prompts: list[list[int]], new: int) -> Answer:
    from serving.request import Request, Sampling

    sampling = Sampling(max_tokens=new, ignore_eos=True)
    noted = TokenTimes(len(prompts))
    rows = {
        engine.submit(Request(client="a", prompt_ids=ids, sampling=sampling)): row
        for row, ids in enumerate(prompts)
    }
    while engine.live:
        for delta in engine.step():
            noted.add(rows[delta.id], delta.ids)
    return noted.answer()


if __name__ == "__main__":
    serve(load, run)
