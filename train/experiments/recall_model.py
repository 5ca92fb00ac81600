"""Models of the recall experiment: a head over the values, and a control whose first keys see two tokens."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from mixattn import ModelConfig, Transformer
from mixattn.layers import Linear

# Suffix of variants whose first layer's keys also see the previous token.
PREVIOUS = "+previous"


@dataclass(frozen=True)
class RecallModelFactory:
    """Builds a variant's model (see `train.objective.ModelFactory`).

    Attributes:
      answers: columns of the head; targets are the first token ids.
      head_size: the head is initialized as N(0, head_size^2 / d_model).
      previous: whether layer 0's keys see the previous token, which embeddings alone do not contain.
    """

    answers: int
    head_size: float = 1.0
    previous: bool = False

    def __call__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> Transformer:
        model = Transformer(config, rngs=rngs)
        head = Linear(config.d_model, self.answers, config, rngs)
        head.kernel[...] = head.kernel[...] * self.head_size
        model.lm_head = head
        if self.previous:
            model.blocks[0].attention.k = TwoTokenLinear(config, rngs)  # type: ignore[assignment]
        return model


class TwoTokenLinear(nnx.Module):
    """A linear map of each position plus a linear map of the previous position."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        width = config.n_kv_heads * config.head_dim
        self.here, self.before = (Linear(config.d_model, width, config, rngs) for _ in range(2))

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        return self.here(x_BTD) + self.before(jnp.pad(x_BTD, ((0, 0), (1, 0), (0, 0)))[:, :-1])
