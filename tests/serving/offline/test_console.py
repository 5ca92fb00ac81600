"""What the offline command shows: a progress line per run, and a policy without a bound in the table."""

import io

from rich.console import Console

from mixattn.tools.progress import ProgressLines
from serving.offline import console
from serving.request import Delta, Output


def test_a_run_reports_its_start_and_its_last_request():
    file = io.StringIO()
    output = Output(
        id="1", client="a", output_ids=[1], finish_reason="length", prompt_tok=1, hit_tok=0, arrival_s=0.0,
        admit_s=0.0, first_token_s=0.0, finish_s=0.0,
    )  # fmt: skip
    with ProgressLines(console=Console(file=file, width=100)) as lines:
        line = console.RequestLine(lines, "serve vtc", 2)
        line.compiled("decode", 1.5)
        for _ in range(2):
            line.delta(Delta(id="1", client="a", ids=[1], output=output))
    first, last = file.getvalue().splitlines()
    assert first == "serve vtc    0/2 requests  starting"
    assert last.startswith("serve vtc    2/2 requests  ")
    assert last.endswith(" output tokens/s")


def test_a_policy_without_a_bound_has_none_in_the_table():
    figures = {"output_tok_per_s": 9.6, "hit_rate": 0.5, "gap": 1234.0, "bound": None, "programs_at_end": 3}
    clients = {name: {"ttft_p50_s": 0.1, "ttft_p99_s": 0.2} for name in ("a", "b")}
    table = console.policy_table({"fcfs": {"table": {**figures, "clients": clients}}})
    columns = [list(column.cells) for column in table.columns]
    assert columns[:5] == [["fcfs", ""], ["10", ""], ["50%", ""], ["1,234", ""], ["none", ""]]
    assert columns[6] == ["a", "b"]
