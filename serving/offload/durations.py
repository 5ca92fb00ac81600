"""Task durations of a policy from the roofline, for schedules that a simulator compares.

Modelled, not measured: each task takes the longer of its FLOPs and its bytes at the machine's rates. Besides
the planner's terms they hold what it leaves out: projections, hidden states on the link, and the copy into
pinned staging, which reads and writes host memory once each.
"""

from serving.offload.plan import OffloadPlanner, OffloadPolicy
from serving.offload.schedule import TaskSeconds, emit
from serving.offload.simulate import simulate


def task_seconds(planner: OffloadPlanner, policy: OffloadPolicy, *, pinned: bool = True) -> TaskSeconds:
    """Durations per layer and micro-batch.

    Args:
      pinned: weights pass through pinned staging on their way; False = they lie in pinned memory already.
    """
    shape, machine, mu = planner.shape, planner.hardware, policy.micro_batch
    b, D, q, kv = shape.b, shape.config.d_model, shape.q_width, shape.kv_width
    streamed = shape.layer_expert_bytes * (1 - policy.resident)

    def projection(width: int) -> float:
        return max(2 * mu * D * width / machine.device_flops, b * D * width / machine.device_Bps)

    return TaskSeconds(
        pre=projection(q + 2 * kv),
        post=projection(q) + planner.experts_seconds(policy) / policy.micro_batches,
        offload=mu * b * (q + 2 * kv) / machine.link_Bps,
        load=mu * b * q / machine.link_Bps,
        host_attention=mu * planner.host_attention_s,
        device_attention=mu * planner.device_attention_s,
        weights=streamed / machine.link_Bps,
        pin=2 * streamed / machine.host_Bps if pinned else 0.0,
        kv=mu * (1 - policy.kv_resident) * planner.kv_layer_bytes / machine.link_Bps,
        store=mu * shape.kv_tok_bytes / machine.link_Bps,
    )


def simulated_tokens_per_s(planner: OffloadPlanner, policy: OffloadPolicy, schedule: str) -> float:
    """Decoding rate from the simulated pass; its fill and drain are counted for every token."""
    tasks = emit(
        schedule,
        layers=planner.shape.mixture_layers,
        micro_batches=policy.micro_batches,
        seconds=task_seconds(planner, policy),
    )
    return policy.batch / simulate(tasks).makespan_s


def fastest_schedule(planner: OffloadPlanner, policy: OffloadPolicy) -> str:
    """The fastest of s1, s2 and s3, or of s4 with device attention; the simpler one of equals.

    At one micro-batch s1's staging cannot overlap with anything, and s2 is faster.
    """
    if policy.device_attention:
        return "s4"
    rates = {name: simulated_tokens_per_s(planner, policy, name) for name in ("s3", "s2", "s1")}
    return max(rates, key=lambda name: rates[name])
