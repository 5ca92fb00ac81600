"""Measures arena-rank; `arena bench --peer=PYTHON` runs this file under a Python that has it, not ours.

Prints one JSON list: the fit after loading, with intervals as that program computes them, cold and warm, in
CPU seconds.
"""

import json
import sys
import time


def measure(path: str) -> list[dict[str, object]]:
    """The rows of `arena bench` about arena-rank, for the votes of a parquet file."""
    import pandas
    from arena_rank.models.bradley_terry import BradleyTerry
    from arena_rank.utils.data_utils import PairDataset

    table = pandas.read_parquet(path, columns=["model_a", "model_b", "winner"])
    rows: list[dict[str, object]] = []
    for when in ("cold", "warm"):
        started = time.process_time()
        data = PairDataset.from_pandas(table)
        model = BradleyTerry(n_competitors=len(data.competitors))
        model.compute_ratings_and_cis(data, significance_level=0.05)
        cpu_s = round(time.process_time() - started, 4)
        rows.append({"what": "fit and sandwich", "program": f"arena-rank, {when}", "cpu_s": cpu_s})
    return rows


def main() -> None:
    """Prints the rows for the file named by the first argument."""
    print(json.dumps(measure(sys.argv[1])))
