"""The attention that keys in pages receive from a chunk of queries, summed over the queries.

    A[b, c, j] = sum of exp(s[b, h, i, j] - L[b, h, i]) over query heads h of key/value head c and queries i

The log-sum-exp L that `paged.attend` returned for the chunk makes every weight final, so the sums need one
product with the keys more: no values, no array of chunk x prefix, and sums of a prompt's chunks add up to the
sums of the whole. Full attention only: pages of a window are not scored. `attend` gives output and sums
together; where a backend can keep the weights of a few queries until their sums are known, it computes no
weight twice.

Backends: `reference` (the definition), `xla` (pages are copied; output and sums in one pass), `tpu` and `gpu`
(each page is read once where it lies; sums in a second pass).

Axes: B rows, C queries of a row, P pages of a row's table, N query heads, K key/value heads, S = P t
positions, t positions of a page, H head size.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import paged
from pallas_kernels.dispatch import Backend, BackendChoice, dispatch
from pallas_kernels.paged import Pool
from pallas_kernels.typing import Layout, Shaped

__all__ = ["PageSumsCall", "attend", "column_sums", "explain"]


class PageSumsCall(NamedTuple):
    """What a backend may know of a call before it runs: static properties only."""

    shape_BCNH: tuple[int, ...]
    shape_BP: tuple[int, ...]
    page_size: int
    n_kv_heads: int
    layout: Layout
    dtype: jnp.dtype
    softcap: float | None


def column_sums(
    q_BCNH: jax.Array,
    pool: Pool,
    table_BP: jax.Array,
    start_B: jax.Array,
    count_B: jax.Array,
    lse_BCN: jax.Array,
    *,
    first_B: jax.Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    backend: Backend | None = None,
) -> jax.Array:
    """The sums of a chunk.

    Args:
      q_BCNH, pool, table_BP, start_B, count_B: as for `paged.attend`, without a window.
      lse_BCN: what it returned for them.
      first_B: queries before this position are left out; None = all count.

    Returns:
      sums_BKS, float32.
    Raises:
      ValueError: shapes disagree.
      NotImplementedError: the named backend does not support the call.
    """
    call = _check_call(q_BCNH, pool, table_BP, softcap)
    if lse_BCN.shape != q_BCNH.shape[:3]:
        shapes = f"{q_BCNH.shape} needs a log-sum-exp of shape {q_BCNH.shape[:3]}; it is {lse_BCN.shape}"
        raise ValueError(f"q {shapes}")
    implementation, choice = dispatch(__name__, backend, call)
    sums_BKS: jax.Array = implementation.column_sums(
        q_BCNH,
        pool,
        table_BP,
        start_B,
        count_B,
        lse_BCN,
        first_B=jnp.zeros_like(start_B) if first_B is None else first_B,
        scale=q_BCNH.shape[-1] ** -0.5 if scale is None else scale,
        softcap=softcap,
        **({"interpret": True} if choice.interpret else {}),
    )
    return sums_BKS


def attend(
    q_BCNH: jax.Array,
    pool: Pool,
    table_BP: jax.Array,
    start_B: jax.Array,
    count_B: jax.Array,
    *,
    first_B: jax.Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    backend: Backend | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Attention of a chunk and the sums of its weights.

    Args:
      as for `column_sums`, which would take the log-sum-exp from `paged.attend`.

    Returns:
      out_BCNH, as of `paged.attend` up to rounding, and sums_BKS.
    Raises:
      ValueError: shapes disagree.
      NotImplementedError: the named backend does not support the call.
    """
    rows = q_BCNH, pool, table_BP, start_B, count_B
    implementation, _ = dispatch(__name__, backend, _check_call(q_BCNH, pool, table_BP, softcap))
    options: dict[str, Any] = {"scale": scale, "softcap": softcap}
    if not hasattr(implementation, "attend"):
        out, lse = paged.attend(*rows, **options, return_lse=True, backend=backend)
        return out, column_sums(*rows, lse, first_B=first_B, **options, backend=backend)
    options["first_B"] = jnp.zeros_like(start_B) if first_B is None else first_B
    options["scale"] = q_BCNH.shape[-1] ** -0.5 if scale is None else scale
    out_BCNH, sums_BKS = implementation.attend(*rows, **options)
    return out_BCNH, sums_BKS


def explain(
    q_BCNH: Shaped,
    pool: Pool,
    table_BP: Shaped,
    *,
    softcap: float | None = None,
    backend: Backend | None = None,
) -> BackendChoice:
    """The backend that runs `column_sums` and `attend`, and why better ones do not. Runs nothing."""
    return dispatch(__name__, backend, _check_call(q_BCNH, pool, table_BP, softcap))[1]


def _check_call(q: Shaped, pool: Pool, table: Shaped, softcap: float | None) -> PageSumsCall:
    if q.shape[2] % pool.n_kv_heads or q.shape[3] != pool.head_dim:
        raise ValueError(
            f"queries are {q.shape}; the pool has {pool.n_kv_heads} heads of size {pool.head_dim}"
        )
    return PageSumsCall(q.shape, table.shape, pool.page_size, pool.n_kv_heads, pool.layout, q.dtype, softcap)
