"""The write on TPU: pages pass through VMEM, in place, only those that are written to.

A row of a page is a fraction of a tile, which no copy can reach: so the page is fetched, changed and put
back. Tokens are visited in the order of their places. Those of one page then follow each other, the page
stays in VMEM until the last of them, and no page is fetched while it is being put back.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu


def refuses(ask) -> str | None:
    if ask.dtype not in (jnp.float32, jnp.bfloat16):
        return f"{ask.dtype} is neither float32 nor bfloat16"
    if ask.layout != "rows":
        return f"the pool keeps its keys in {ask.layout}; this kernel writes rows"
    if ask.shape_PKtH[2] % 8:
        return f"pages of {ask.shape_PKtH[2]} positions are not whole tiles of 8"
    return None


def write(keys, values_PKtH, k_TKH, v_TKH, page_T, offset_T, *, layout, interpret=False):
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


def visits(page_T, offset_T, P, t):
    """The order of the tokens, the page and offset of each in that order, and how many are not dropped.

    Dropped tokens come last and stay where the last real one was; if there is none, at the null page. So the
    visits of a page follow each other whatever the tokens.
    """
    order_T = jnp.argsort(page_T * t + offset_T).astype(jnp.int32)
    page_T, offset_T = page_T[order_T], offset_T[order_T]
    last = jnp.max(jnp.where(page_T < P, page_T, 0))
    return order_T, jnp.where(page_T < P, page_T, last), offset_T, jnp.sum(page_T < P, dtype=jnp.int32)


def _kernel(page, offset, order, real, k_KH, v_KH, keys_old, values_old, keys_KtH, values_KtH):
    i = pl.program_id(0)
    arrives = (i == 0) | (page[i] != page[jnp.maximum(i - 1, 0)])
    opens = (offset[i] == 0) & (i < real[0])

    @pl.when(arrives & ~opens)
    def _():
        keys_KtH[...], values_KtH[...] = keys_old[...], values_old[...]

    @pl.when(opens)
    def _():
        keys_KtH[...], values_KtH[...] = jnp.zeros_like(keys_KtH), jnp.zeros_like(values_KtH)

    @pl.when(i < real[0])
    def _():
        K, t, H = keys_KtH.shape
        here_tH = lax.broadcasted_iota(jnp.int32, (t, H), 0) == offset[i]
        for pages, row_KH in ((keys_KtH, k_KH), (values_KtH, v_KH)):
            for h in range(K):
                # Chosen as float32, which every TPU can, and which changes no bit.
                row_1H, old_tH = (x.astype(jnp.float32) for x in (row_KH[h : h + 1], pages[h]))
                pages[h] = jnp.where(here_tH, row_1H, old_tH).astype(pages.dtype)
