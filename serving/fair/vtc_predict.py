"""Virtual token counter with length prediction: pays for the output it expects when it admits.

Source: VTC (arXiv 2401.00588) section 4.4, Alg. 3. The worst case is that of VTC; the usual gap is much
smaller, because a client with many admitted requests is seen to have used what they will produce.

The bound of `Vtc` holds as it stands: what is paid ahead is capped by the output limit, so what one waiting
client has paid ahead and what another may still be charged share the same memory M.
"""

from serving.fair import predict
from serving.fair.vtc import Vtc


class VtcPredict(Vtc):
    def __init__(
        self,
        *,
        predictor: str | predict.Predictor = "mean",
        seed: int = 0,
        spread: float = 0.5,
        window: int = 5,
        **options,
    ):
        """
        Args:
          predictor: `oracle`, `noisy` (uniform in 1 -+ `spread`, drawn from `seed`), `mean` (of the client's
            last `window` outputs), or an object.
        """
        if isinstance(predictor, str):
            predictor = predict.named(predictor, seed=seed, spread=spread, window=window)
        super().__init__(predictor=predictor, **options)
