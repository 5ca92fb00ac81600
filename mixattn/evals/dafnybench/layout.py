"""Result files in the public repository's layout, so that its notebooks read them."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from mixattn.evals.dafnybench.checking import Task
from mixattn.evals.dafnybench.models import Attempt
from mixattn.tools import files


def write(folder: Path, model: str, tasks: Sequence[Task], attempts: dict[str, list[Attempt]]) -> None:
    """Writes `results_summary/MODEL_results.csv` and `reconstructed_files/MODEL_outputs.json`."""
    rows, outputs = [], {}
    for number, task in enumerate(tasks):
        past = attempts.get(task.name)
        if not past:
            continue
        ident, name = f"{number:03d}", f"{task.name}_no_hints.dfy"
        success = next((k for k, attempt in enumerate(past) if attempt.accepted), None)
        rows.append([ident, name, "failed" if success is None else success])
        outputs[ident] = {"test_ID": ident, "test_file": name, "llm_output": past[-1].solution}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["test_ID", "test_file", "success_on_attempt_#"])
    writer.writerows(rows)
    for part in ("results_summary", "reconstructed_files"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    files.write_text(folder / "results_summary" / f"{model}_results.csv", text.getvalue())
    files.write_json(folder / "reconstructed_files" / f"{model}_outputs.json", outputs)
