"""One training step as one compiled function, and the state it carries from step to step.

    gradient = d/dparams [ sum of nats over loss tokens / loss tokens + expert losses ]
    params  += lr_scale(step) * update(gradient)

The sums are over all micro-batches of the step.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mixattn import ModelConfig, Transformer
from train import mesh as meshes
from train import objective, optimizer
from train.objective import Params, Sums

_REMAT = {
    "none": None,
    "block": None,
    "dots": jax.checkpoint_policies.dots_saveable,
    "weights": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "everything": jax.checkpoint_policies.nothing_saveable,
}


@dataclass
class ComputeConfig:
    """How a step is computed. These fields change the result by rounding only.

    Attributes:
      dtype: of activations and of the weights inside the model.
      master_dtype: of the master copy of the weights and of the optimizer's state. "bfloat16" halves their
        memory and trains worse: small updates are rounded away. The exported model has `model.dtype`.
      accumulate: micro-batches per step; their gradients are added.
      remat: what the backward pass recomputes: "none"; "dots": all but matmul results; "weights": all but
        results of matmuls with weights; "everything"; or "block": everything but K/V and each block's input,
        one block at a time, which takes the least memory.
      peak_flops: FLOP/s of one device, for the utilisation in metrics.csv (0 = from `train.flops`).
      load_balance, z: weights of the two expert losses.
    """

    dtype: str = "float32"
    master_dtype: str = "float32"
    accumulate: int = 1
    remat: str = "none"
    peak_flops: float = 0.0
    load_balance: float = 0.01
    z: float = 0.001

    def check(self) -> None:
        if self.remat not in _REMAT:
            raise ValueError(f"compute.remat is {self.remat!r}; it must be one of {', '.join(_REMAT)}")
        for name in ("dtype", "master_dtype"):
            if getattr(self, name) not in ("float32", "bfloat16"):
                raise ValueError(f"compute.{name} is {getattr(self, name)!r}; it must be float32 or bfloat16")
        if self.peak_flops < 0:
            raise ValueError(f"compute.peak_flops is {self.peak_flops}; 0 looks the device up")
        if self.accumulate < 1:
            raise ValueError(
                f"compute.accumulate is {self.accumulate}; a step takes at least one micro-batch"
            )


class TrainState(NamedTuple):
    """What a step updates. Leaves are arrays, or shapes or shardings in their place.

    Attributes:
      step: int32, steps done in this stage.
      params: master copy of the parameters by path.
      opt_state: the optimizer's state of the trainable parameters.
    """

    step: Any
    params: dict[str, Any]
    opt_state: Any


class StepMetrics(NamedTuple):
    """Float32 figures of one step, measured before its update.

    `loss` is in nats per loss token, `accuracy` a fraction of the loss tokens, `lr_scale` the factor on the
    peak learning rates.
    """

    loss: jax.Array
    accuracy: jax.Array
    grad_norm: jax.Array
    lr_scale: jax.Array
    load_balance: jax.Array
    expert_load_E: jax.Array


class CompiledStage:
    """The compiled functions of one stage.

    Args:
      config: of the model, with the stage's RoPE theta.
      optimizer_config: with the stage's peak learning rates.
      trainable: which parameters are updated (`optimizer.is_trainable`).
      document_mask: restricts attention to the query's own document.
      build: builds the model.
    """

    def __init__(
        self,
        config: ModelConfig,
        optimizer_config: optimizer.OptimizerConfig,
        compute: ComputeConfig,
        mesh: Mesh,
        *,
        trainable: str = "all",
        document_mask: bool = False,
        build: objective.ModelFactory = Transformer,
    ):
        self.optimizer_config, self.compute = optimizer_config, compute
        self.mesh, self.trainable = mesh, trainable
        self.tx = optimizer.build(optimizer_config)
        config = dataclasses.replace(config, dtype=compute.master_dtype)
        computed = dataclasses.replace(config, dtype=compute.dtype)
        self.graph = objective.graph_of(computed, build)
        remat = jax.checkpoint if compute.remat == "block" else None
        self.sums = functools.partial(objective.sums, self.graph, document_mask=document_mask, remat=remat)
        self.replicated = NamedSharding(mesh, P())
        self.rows = meshes.batch_sharding(mesh)
        self.shardings = self._shardings(jax.eval_shape(lambda: objective.init_params(config, 0, build)))
        self.train = jax.jit(
            self._train,
            donate_argnums=0,
            in_shardings=(self.shardings, self.rows, self.replicated),
            out_shardings=(self.shardings, self.replicated),
        )
        self.evaluate = jax.jit(
            self._evaluate, in_shardings=(self.shardings.params, self.rows), out_shardings=self.replicated
        )

    def init_state(self, params: Params) -> TrainState:
        """Returns the stage's first state, sharded over the mesh."""

        def fresh(params: Params) -> TrainState:
            return TrainState(jnp.zeros((), jnp.int32), params, self.tx.init(self._split(params)[0]))

        return jax.jit(fresh, out_shardings=self.shardings)(params)

    def place(self, batch: dict[str, Any]) -> dict[str, jax.Array]:
        """Moves this process's rows of a batch to its devices."""
        if jax.process_count() == 1:
            return jax.device_put(dict(batch), self.rows)
        return {k: jax.make_array_from_process_local_data(self.rows, x) for k, x in batch.items()}

    def _split(self, params: Params) -> tuple[Params, Params]:
        """Returns (trainable, frozen) parameters."""
        trained: Params = {}
        frozen: Params = {}
        for path, x in params.items():
            (trained if optimizer.is_trainable(path, self.trainable) else frozen)[path] = x
        return trained, frozen

    def _shardings(self, shapes: Params) -> TrainState:
        opt_state = jax.eval_shape(lambda p: self.tx.init(self._split(p)[0]), shapes)

        def place(keys: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
            path = next((key.key for key in keys if getattr(key, "key", None) in shapes), None)
            # Optimizer state of another shape than its parameter is replicated.
            if path is None or leaf.shape != shapes[path].shape:
                return self.replicated
            return meshes.parameter_sharding(self.mesh, path, leaf.shape)

        params = {path: meshes.parameter_sharding(self.mesh, path, x.shape) for path, x in shapes.items()}
        return TrainState(self.replicated, params, jax.tree_util.tree_map_with_path(place, opt_state))

    def _cast(self, params: Params) -> Params:
        """Casts weights to the compute dtype, except routers: rounding changes the experts they choose."""
        dtype = self.compute.dtype
        return {path: x if path.endswith(".router") else x.astype(dtype) for path, x in params.items()}

    def _train(
        self, state: TrainState, batch: dict[str, jax.Array], steps: jax.Array
    ) -> tuple[TrainState, StepMetrics]:
        trained, frozen = self._split(state.params)
        loss_tokens = jnp.maximum(batch["loss_mask_BT"].sum(), 1.0)

        def loss(trained: Params, micro: dict[str, jax.Array]) -> tuple[jax.Array, Sums]:
            sums = self.sums(self._cast({**trained, **frozen}), micro)
            experts = self.compute.load_balance * sums.load_balance + self.compute.z * sums.z
            return sums.nats / loss_tokens + experts / self.compute.accumulate, sums

        if self.compute.remat not in ("none", "block"):
            loss = jax.checkpoint(loss, policy=_REMAT[self.compute.remat])
        gradient, sums = self._accumulate(jax.grad(loss, has_aux=True), trained, batch)
        updates, opt_state = self.tx.update(gradient, state.opt_state, trained)
        lr_scale = optimizer.lr_scale(self.optimizer_config, state.step, steps)
        updates = jax.tree.map(lambda u: u * lr_scale.astype(u.dtype), updates)
        params = {**optax.apply_updates(trained, updates), **frozen}
        metrics = StepMetrics(
            loss=sums.nats / loss_tokens,
            accuracy=sums.correct / loss_tokens,
            grad_norm=optax.tree.norm(gradient),
            lr_scale=lr_scale,
            load_balance=sums.load_balance / self.compute.accumulate,
            expert_load_E=sums.expert_load_E / self.compute.accumulate,
        )
        return TrainState(state.step + 1, {path: params[path] for path in state.params}, opt_state), metrics

    def _accumulate(
        self,
        gradient_of: Callable[[Params, dict[str, jax.Array]], tuple[Params, Sums]],
        trained: Params,
        batch: dict[str, jax.Array],
    ) -> tuple[Params, Sums]:
        """Adds gradients and sums over the micro-batches."""
        if (parts := self.compute.accumulate) == 1:
            return gradient_of(trained, batch)
        # Interleaved rows: each device already holds its share of every micro-batch.
        micro = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)

        def add(total: tuple[Params, Sums], one: dict[str, jax.Array]) -> tuple[tuple[Params, Sums], None]:
            return jax.tree.map(jnp.add, total, gradient_of(trained, one)), None

        shapes = jax.eval_shape(gradient_of, trained, jax.tree.map(lambda x: x[0], micro))
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return jax.lax.scan(add, zeros, micro)[0]

    def _evaluate(self, params: Params, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        sums = self.sums(self._cast(params), batch)
        return sums.nats, sums.loss_tokens
