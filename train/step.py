"""One training step as one compiled function, and what it carries from step to step.

gradient = d/dparams [ sum of learnt nats / learnt tokens + expert losses ]      over all micro-batches
params  += factor(step) * rule(gradient)
"""

import functools
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
from train.objective import Params

_REMAT = {
    "none": None,
    "block": None,
    "dots": jax.checkpoint_policies.dots_saveable,
    "weights": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "everything": jax.checkpoint_policies.nothing_saveable,
}


@dataclass
class Compute:
    """How a step is computed; none of it changes what is computed, but for rounding.

    Attributes:
      dtype: of activations and of the weights as the model sees them; the master copy stays as the model
        config says.
      accumulate: micro-batches a step; their gradients are added.
      remat: what the backward pass finds saved: "none" recomputes nothing, "dots" all but matmul results,
        "weights" all but results of matmuls with weights, "everything" all, each as one stretch; "block"
        everything but K/V and what goes into each block, one block at a time: the least memory.
      peak_flops: FLOP/s of one device, for the utilisation in metrics.csv (0 = as `train.flops` knows it).
      load_balance, z: weights of the two expert losses.
    """

    dtype: str = "float32"
    accumulate: int = 1
    remat: str = "none"
    peak_flops: float = 0.0
    load_balance: float = 0.01
    z: float = 0.001

    def check(self) -> None:
        if self.remat not in _REMAT:
            raise ValueError(f"compute.remat is {self.remat!r}; it must be one of {', '.join(_REMAT)}")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"compute.dtype is {self.dtype!r}; it must be float32 or bfloat16")
        if self.peak_flops < 0:
            raise ValueError(f"compute.peak_flops is {self.peak_flops}; 0 looks the device up")
        if self.accumulate < 1:
            raise ValueError(
                f"compute.accumulate is {self.accumulate}; a step takes at least one micro-batch"
            )


class TrainState(NamedTuple):
    """`step` int32: steps done in this stage. `moments`: the rule's state, of the parameters that move.

    Leaves are arrays, or in their places shapes or shardings.
    """

    step: Any
    params: dict[str, Any]
    moments: Any


class StepMetrics(NamedTuple):
    """Of one step, before its update, float32. `loss` in nats a learnt token, `right` a share of those."""

    loss: jax.Array
    right: jax.Array
    grad_norm: jax.Array
    factor: jax.Array
    load_balance: jax.Array
    expert_load_E: jax.Array


class Steps:
    """The compiled functions of one stage.

    Args:
      config: of the model, with the stage's rope theta.
      trains: which parameters move (`optimizer.trainable`).
      build: makes the model.
    """

    def __init__(
        self,
        config: ModelConfig,
        rule: optimizer.Optimizer,
        compute: Compute,
        mesh: Mesh,
        *,
        trains: str = "all",
        document_mask: bool = False,
        build: objective.Build = Transformer,
    ):
        self.rule, self.compute, self.mesh, self.trains = rule, compute, mesh, trains
        self.optax = optimizer.build(rule)
        computed = ModelConfig(**{**vars(config), "dtype": compute.dtype})
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

    def start(self, params: Params) -> TrainState:
        """A stage's first state, laid out over the mesh."""

        def fresh(params):
            return TrainState(jnp.zeros((), jnp.int32), params, self.optax.init(self._split(params)[0]))

        return jax.jit(fresh, out_shardings=self.shardings)(params)

    def _split(self, params: Params) -> tuple[Params, Params]:
        """(what moves, what stays)."""
        moves = {path: optimizer.trainable(path, self.trains) for path in params}
        return tuple({p: x for p, x in params.items() if moves[p] is keep} for keep in (True, False))  # type: ignore[return-value]

    def _shardings(self, shapes: Params) -> TrainState:
        moments = jax.eval_shape(lambda p: self.optax.init(self._split(p)[0]), shapes)

        def place(keys, leaf):
            path = next((key.key for key in keys if getattr(key, "key", None) in shapes), None)
            # A rule may keep something smaller than a moment for a parameter: then every device has it whole.
            if path is None or leaf.shape != shapes[path].shape:
                return self.replicated
            return meshes.parameter_sharding(self.mesh, path, leaf.shape)

        params = {path: meshes.parameter_sharding(self.mesh, path, x.shape) for path, x in shapes.items()}
        return TrainState(self.replicated, params, jax.tree_util.tree_map_with_path(place, moments))

    def _cast(self, params: Params) -> Params:
        """The weights as the model sees them. Routers stay whole: rounded, they choose other experts."""
        dtype = self.compute.dtype
        return {path: x if path.endswith(".router") else x.astype(dtype) for path, x in params.items()}

    def _train(
        self, state: TrainState, batch: dict[str, jax.Array], steps: jax.Array
    ) -> tuple[TrainState, StepMetrics]:
        moving, still = self._split(state.params)
        learnt = jnp.maximum(batch["learn_BT"].sum(), 1.0)

        def loss(moving: Params, micro: dict[str, jax.Array]):
            sums = self.sums(self._cast({**moving, **still}), micro)
            experts = self.compute.load_balance * sums.load_balance + self.compute.z * sums.z
            return sums.nats / learnt + experts / self.compute.accumulate, sums

        if self.compute.remat not in ("none", "block"):
            loss = jax.checkpoint(loss, policy=_REMAT[self.compute.remat])
        gradient, sums = self._accumulate(jax.grad(loss, has_aux=True), moving, batch)
        updates, moments = self.optax.update(gradient, state.moments, moving)
        factor = optimizer.factor(self.rule, state.step, steps)
        updates = jax.tree.map(lambda u: u * factor.astype(u.dtype), updates)
        params = {**optax.apply_updates(moving, updates), **still}
        metrics = StepMetrics(
            loss=sums.nats / learnt,
            right=sums.right / learnt,
            grad_norm=optax.tree.norm(gradient),
            factor=factor,
            load_balance=sums.load_balance / self.compute.accumulate,
            expert_load_E=sums.expert_load_E / self.compute.accumulate,
        )
        return TrainState(state.step + 1, {path: params[path] for path in state.params}, moments), metrics

    def _accumulate(self, gradient_of, moving: Params, batch: dict[str, jax.Array]):
        """Adds gradients and sums over the micro-batches."""
        if (parts := self.compute.accumulate) == 1:
            return gradient_of(moving, batch)
        # Rows are dealt out in turn: each device then has its share of every micro-batch at hand.
        micro = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)

        def add(total, one):
            return jax.tree.map(jnp.add, total, gradient_of(moving, one)), None

        shapes = jax.eval_shape(gradient_of, moving, jax.tree.map(lambda x: x[0], micro))
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return jax.lax.scan(add, zeros, micro)[0]

    def _evaluate(self, params: Params, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        sums = self.sums(self._cast(params), batch)
        return sums.nats, sums.learnt
