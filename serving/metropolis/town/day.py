"""Steps and the time of day: ten seconds a step, from seven in the morning."""

STEPS_PER_HOUR = 360
START_HOUR = 7


def time_of_day(step: int) -> str:
    """The time of day at a step."""
    minutes = START_HOUR * 60 + step * 60 // STEPS_PER_HOUR
    return f"{minutes // 60 % 24:02}:{minutes % 60:02}"


def step_at(hour: int, minute: int) -> int:
    """The step at a time of day; earlier times than the start are step 0."""
    return max(0, (hour - START_HOUR) * STEPS_PER_HOUR + minute * STEPS_PER_HOUR // 60)
