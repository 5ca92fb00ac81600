"""The programs that are compiled for absent chips: every kernel at shapes that a model would ask for.

A program is a function and the shapes of its arguments; `TPU` and `GPU` name those that their chips' bodies
take. Axes as in the ops.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from pallas_kernels import paged
from pallas_kernels.attention import attention
from pallas_kernels.heavy_hitter import column_sums


class Program(NamedTuple):
    fn: Callable[..., Any]
    arrays: tuple[Any, ...]


type Make = Callable[[str], Program]


def shape(*dimensions, dtype="bfloat16"):
    return jax.ShapeDtypeStruct(dimensions, dtype)


def prefill(backend, *, T=8192, N=8, K=2, H=128, window=None, dtype="bfloat16", documents=False) -> Program:
    q, k = shape(1, T, N, H, dtype=dtype), shape(1, T, K, H, dtype=dtype)

    def call(q, k, v, *segment_BT):
        segments = {f"segment_{name}": segment_BT[0] for name in ("q_BT", "k_BS")} if documents else {}
        return attention(q, k, v, window=window, return_lse=True, backend=backend, **segments)

    return Program(call, (q, k, k, *[shape(1, T, dtype="int32")] * documents))


def training(backend, **sizes) -> Program:
    """Forward and backward."""
    fn, (q, k, v, *segment) = prefill(backend, **sizes)

    def gradients(q, k, v, dout, *segment):
        return jax.vjp(lambda *x: fn(*x, *segment)[0], q, k, v)[1](dout)

    return Program(gradients, (q, k, v, q, *segment))


def sums(backend, *, T=8192, N=8, K=2, H=128, window=None, dtype="bfloat16") -> Program:
    arrays = shape(1, T, N, H, dtype=dtype), shape(1, T, K, H, dtype=dtype), shape(1, T, N, dtype="float32")
    return Program(functools.partial(column_sums, window=window, backend=backend), arrays)


def decode(
    backend, *, B=32, C=1, N=8, K=2, H=128, page=16, context=8192, window=None, dtype="bfloat16", **extras
) -> Program:
    pool = jax.eval_shape(lambda: paged.init(1 + B * 8, page, K, H, dtype, layout="rows"))
    index = shape(B, dtype="int32")
    arrays = shape(B, C, N, H, dtype=dtype), pool, shape(B, context // page, dtype="int32"), index, index
    return Program(functools.partial(paged.attend, window=window, backend=backend, **extras), arrays)


def write(backend, *, T=32, K=2, H=128, page=16, pages=4096, dtype="bfloat16") -> Program:
    pool = jax.eval_shape(lambda: paged.init(pages, page, K, H, dtype, layout="rows"))
    row, index = shape(T, K, H, dtype=dtype), shape(T, dtype="int32")
    return Program(functools.partial(paged.write, backend=backend), (pool, row, row, index, index))


def on(backend: str, **makes: Make) -> dict[str, Callable[[], Program]]:
    return {name: functools.partial(make, backend) for name, make in makes.items()}


TPU = on(
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
    write=write,
    write_float32=functools.partial(write, T=512, H=64, dtype="float32", page=64),
)
GPU = on(
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
)
# By chip: what is compiled for it.
# Of v6e one of each kernel: what differs between the two TPUs is their tiles and their memory, not our code.
NEWER = ("prefill_window", "training_window", "sums", "decode", "decode_weights", "chunk", "write")
PROGRAMS = {"v5e": TPU, "v6e": {name: TPU[name] for name in NEWER}, "h100": GPU}
