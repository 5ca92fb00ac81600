"""The harness: interleaved rounds, warm-up left out, medians and minima."""

from pallas_kernels import measure


def test_sides_take_turns_and_warm_up_rounds_are_left_out():
    calls: list[str] = []

    def side(name: str):
        def call() -> int:
            calls.append(name)
            return len(calls)

        return call

    taken = measure.interleave({"a": side("a"), "b": side("b")}, 2, warmup=1)
    assert calls == ["a", "b"] * 3
    assert taken == {"a": [3, 5], "b": [4, 6]}


def test_seconds_are_of_the_call():
    assert 0 <= measure.timed(lambda: None)() < 1


def test_figures_are_the_median_and_the_minimum_in_milliseconds():
    assert measure.milliseconds([0.003, 0.001, 0.002]) == {"median_ms": 2.0, "min_ms": 1.0}
