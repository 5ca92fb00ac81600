"""Programs that are compiled for absent chips: every kernel at the shapes of a model.

A program is a function and the shapes of its arguments; `TPU` and `GPU` list those of their backends. Axes
are those of the ops.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.typing import DTypeLike

from pallas_kernels import paged
from pallas_kernels.attention import attention
from pallas_kernels.dispatch import Backend
from pallas_kernels.heavy_hitter import column_sums
from pallas_kernels.paged_votes import column_sums as page_sums


class Program(NamedTuple):
    """A function, and the shapes of its arguments as pytrees of `jax.ShapeDtypeStruct`."""

    fn: Callable[..., Any]
    arrays: tuple[Any, ...]


type Make = Callable[[Backend], Program]


def shape(*dimensions: int, dtype: DTypeLike = "bfloat16") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(dimensions, dtype)


def prefill(
    backend: Backend,
    *,
    T: int = 8192,
    N: int = 8,
    K: int = 2,
    H: int = 128,
    window: int | None = None,
    dtype: DTypeLike = "bfloat16",
    documents: bool = False,
) -> Program:
    q, k = shape(1, T, N, H, dtype=dtype), shape(1, T, K, H, dtype=dtype)

    def call(q: jax.Array, k: jax.Array, v: jax.Array, *segment_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        options: dict[str, Any] = {"window": window, "backend": backend}
        if documents:
            options |= {"segment_q_BT": segment_BT[0], "segment_k_BS": segment_BT[0]}
        return attention(q, k, v, return_lse=True, **options)

    return Program(call, (q, k, k, *[shape(1, T, dtype="int32")] * documents))


def training(backend: Backend, **sizes: Any) -> Program:
    """Forward and backward pass of attention."""
    fn, (q, k, v, *segment) = prefill(backend, **sizes)

    def gradients(q: jax.Array, k: jax.Array, v: jax.Array, dout: jax.Array, *segment: jax.Array) -> Any:
        return jax.vjp(lambda *x: fn(*x, *segment)[0], q, k, v)[1](dout)

    return Program(gradients, (q, k, v, q, *segment))


def sums(
    backend: Backend,
    *,
    T: int = 8192,
    N: int = 8,
    K: int = 2,
    H: int = 128,
    window: int | None = None,
    dtype: DTypeLike = "bfloat16",
) -> Program:
    arrays = shape(1, T, N, H, dtype=dtype), shape(1, T, K, H, dtype=dtype), shape(1, T, N, dtype="float32")
    return Program(functools.partial(column_sums, window=window, backend=backend), arrays)


def decode(
    backend: Backend,
    *,
    B: int = 32,
    C: int = 1,
    N: int = 8,
    K: int = 2,
    H: int = 128,
    page: int = 16,
    context: int = 8192,
    window: int | None = None,
    dtype: DTypeLike = "bfloat16",
    **extras: Any,
) -> Program:
    pool = jax.eval_shape(lambda: paged.init(1 + B * 8, page, K, H, dtype, layout="rows"))
    index = shape(B, dtype="int32")
    arrays = shape(B, C, N, H, dtype=dtype), pool, shape(B, context // page, dtype="int32"), index, index
    return Program(functools.partial(paged.attend, window=window, backend=backend, **extras), arrays)


def write(
    backend: Backend,
    *,
    T: int = 32,
    K: int = 2,
    H: int = 128,
    page: int = 16,
    pages: int = 4096,
    dtype: DTypeLike = "bfloat16",
) -> Program:
    pool = jax.eval_shape(lambda: paged.init(pages, page, K, H, dtype, layout="rows"))
    row, index = shape(T, K, H, dtype=dtype), shape(T, dtype="int32")
    return Program(functools.partial(paged.write, backend=backend), (pool, row, row, index, index))


def votes(
    backend: Backend,
    *,
    B: int = 4,
    C: int = 256,
    N: int = 8,
    K: int = 2,
    H: int = 128,
    page: int = 16,
    context: int = 8192,
    dtype: DTypeLike = "bfloat16",
) -> Program:
    """Column sums of a chunk over pages."""
    pool = jax.eval_shape(lambda: paged.init(1 + B * 8, page, K, H, dtype, layout="rows"))
    index, lse = shape(B, dtype="int32"), shape(B, C, N, dtype="float32")
    table = shape(B, context // page, dtype="int32")
    arrays = shape(B, C, N, H, dtype=dtype), pool, table, index, index, lse, index

    def call(*x: Any) -> jax.Array:
        return page_sums(*x[:-1], first_B=x[-1], backend=backend)

    return Program(call, arrays)


def programs_for(backend: Backend, **makes: Make) -> dict[str, Callable[[], Program]]:
    """The programs of one backend, by name."""
    return {name: functools.partial(make, backend) for name, make in makes.items()}


TPU = programs_for(
    "tpu",
    prefill=prefill,
    prefill_window=functools.partial(prefill, window=1024),
    prefill_float32=functools.partial(prefill, window=1024, dtype="float32"),
    prefill_documents=functools.partial(prefill, documents=True),
    training=training,
    training_window=functools.partial(training, window=1024, documents=True),
    training_float32=functools.partial(training, window=1024, dtype="float32"),
    training_head_256=functools.partial(training, N=4, H=256, T=2048),
    sums=sums,
    decode=decode,
    decode_window=functools.partial(decode, window=1024),
    decode_head_64=functools.partial(decode, H=64),
    decode_float32=functools.partial(decode, dtype="float32", page=64),
    decode_weights=functools.partial(decode, window=1024, return_weights=True),
    chunk=functools.partial(decode, C=64),
    votes=votes,
    votes_float32=functools.partial(votes, dtype="float32", page=64, H=64),
    slab_weights=functools.partial(decode, context=512, return_weights=True),
    write=write,
    write_float32=functools.partial(write, T=512, H=64, dtype="float32", page=64),
)
GPU = programs_for(
    "gpu",
    prefill=prefill,
    prefill_window=functools.partial(prefill, window=1024),
    prefill_head_64=functools.partial(prefill, H=64, window=1000, N=6),
    prefill_documents=functools.partial(prefill, documents=True),
    training=training,
    training_window=functools.partial(training, window=1024, documents=True),
    training_head_64=functools.partial(training, H=64, window=1000, N=6),
    sums=sums,
    sums_head_64=functools.partial(sums, H=64, window=1000, N=6),
    decode=decode,
    decode_window=functools.partial(decode, window=1024),
    decode_head_64=functools.partial(decode, H=64),
    decode_three_heads=functools.partial(decode, N=6),
    decode_weights=functools.partial(decode, window=1024, return_weights=True),
    chunk=functools.partial(decode, C=64),
    votes=votes,
    votes_head_64=functools.partial(votes, H=64, N=6),
    slab_weights=functools.partial(decode, context=512, return_weights=True),
)
# One program per kernel for v6e: the two TPUs differ in tiles and memory, not in the code of the kernels.
V6E = ("prefill_window", "training_window", "sums", "decode", "decode_weights", "chunk", "votes", "write")
# By chip, the programs compiled for it.
PROGRAMS = {"v5e": TPU, "v6e": {name: TPU[name] for name in V6E}, "h100": GPU}
