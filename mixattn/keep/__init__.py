"""What a KV cache keeps when it may not keep everything: a budget, and the scorers that fill it.

    Keep(scorer="h2o", budget=0.2)                    a fifth of the prompt, half of it recent (the paper's
    split) Keep(scorer="streaming", budget=256)              256 keys: 4 sinks and the newest
    Keep(scorer="snapkv", budget=0.5, when="prompt")  the prompt is cut once, then the cache grows

`generate(model, prompts, keep=Keep(...))` uses it, and `kv_bytes(config, tokens, keep=...)` counts it. Only
owners with full attention are cut; sliding owners are bounded already. A new method is one file in
`mixattn.keep.scorers`.

How methods that are not built would fit:

    value-aware factors (norms of v or W_o v)  a scorer's `settled` sees values; W_o needs one argument more
    thresholds (KVzap)                         `worth` below the threshold is -inf; slabs must then report
    their size static head kinds (DuoAttention)           an allocator by head: limits [B, K] in place of [B]
    budgets by head (Ada-KV)                   the same; a slab is as large as its largest head, others are
    masked pages chosen per query (Quest)             no eviction: another page kind, not a scorer
"""

from mixattn.keep.budget import Keep
from mixattn.keep.scorers import SCORERS, Scorer

__all__ = ["SCORERS", "Keep", "Scorer"]
