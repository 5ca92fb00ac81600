"""The write on TPU: only the pages that are written to pass through VMEM, in place.

A row of a page is a fraction of a tile, and no copy addresses less than a tile, so a page is read, modified
and written back. Tokens are sorted by place. The tokens of a page are then consecutive, the page stays in
VMEM until the last of them, and no page is read while it is being written back.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.kv_write import KvWriteCall
from pallas_kernels.typing import Interpret, Layout, Ref


def unsupported(call: KvWriteCall) -> str | None:
    """The reason why this backend cannot run the call, or None."""
    if call.dtype not in (jnp.float32, jnp.bfloat16):
        return f"{call.dtype} is neither float32 nor bfloat16"
    if call.layout != "rows":
        return f"the pool keeps its keys in {call.layout}; this kernel writes rows"
    if call.shape_PKtH[2] % 8:
        return f"pages of {call.shape_PKtH[2]} positions are not whole tiles of 8"
    return None


def write(
    keys: jax.Array,
    values_PKtH: jax.Array,
    k_TKH: jax.Array,
    v_TKH: jax.Array,
    page_T: jax.Array,
    offset_T: jax.Array,
    *,
    layout: Layout,
    interpret: Interpret = False,
) -> jax.Array:
    """Returns keys and values. `interpret`: True, or `pltpu.InterpretParams`."""
    P, K, t, H = values_PKtH.shape
    order_T, visited_T, offset_T, real = visits(page_T, offset_T, P, t)
    token = pl.BlockSpec((None, K, H), lambda i, page, offset, order, real: (order[i], 0, 0))
    page = pl.BlockSpec((None, K, t, H), lambda i, page, offset, order, real: (page[i], 0, 0, 0))
    pages = jax.ShapeDtypeStruct(values_PKtH.shape, values_PKtH.dtype)
    return pl.pallas_call(
        _kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(len(page_T),),
            in_specs=[token, token, page, page],
            out_specs=[page, page],
        ),
        out_shape=[pages, pages],
        input_output_aliases={6: 0, 7: 1},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
        cost_estimate=pl.CostEstimate(
            flops=0,
            transcendentals=0,
            bytes_accessed=4 * len(page_T) * K * t * H * values_PKtH.dtype.itemsize,
        ),
        interpret=interpret,
    )(visited_T, offset_T, order_T, real[None], k_TKH, v_TKH, keys, values_PKtH)


def visits(
    page_T: jax.Array, offset_T: jax.Array, P: int, t: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The order of the tokens, the page and offset of each in that order, and the number of kept tokens.

    Dropped tokens come last and stay at the page of the last kept token, or at the null page if there is
    none. The visits of a page are therefore consecutive.
    """
    order_T = jnp.argsort(page_T * t + offset_T).astype(jnp.int32)
    page_T, offset_T = page_T[order_T], offset_T[order_T]
    last = jnp.max(jnp.where(page_T < P, page_T, 0))
    return order_T, jnp.where(page_T < P, page_T, last), offset_T, jnp.sum(page_T < P, dtype=jnp.int32)


def _kernel(
    page: Ref,
    offset: Ref,
    order: Ref,
    real: Ref,
    k_KH: Ref,
    v_KH: Ref,
    keys_old: Ref,
    values_old: Ref,
    keys_KtH: Ref,
    values_KtH: Ref,
) -> None:
    i = pl.program_id(0)
    arrives = (i == 0) | (page[i] != page[jnp.maximum(i - 1, 0)])
    opens = (offset[i] == 0) & (i < real[0])

    @pl.when(arrives & ~opens)
    def _() -> None:
        keys_KtH[...], values_KtH[...] = keys_old[...], values_old[...]

    @pl.when(opens)
    def _() -> None:
        keys_KtH[...], values_KtH[...] = jnp.zeros_like(keys_KtH), jnp.zeros_like(values_KtH)

    @pl.when(i < real[0])
    def _() -> None:
        K, t, H = keys_KtH.shape
        here_tH = lax.broadcasted_iota(jnp.int32, (t, H), 0) == offset[i]
        for pages, row_KH in ((keys_KtH, k_KH), (values_KtH, v_KH)):
            for h in range(K):
                # Selected as float32, which every TPU supports and which changes no bit.
                row_1H, old_tH = (x.astype(jnp.float32) for x in (row_KH[h : h + 1], pages[h]))
                pages[h] = jnp.where(here_tH, row_1H, old_tH).astype(pages.dtype)
