"""The bench: interleaved timings, a CSV that says what it was made on, one sentence on bad input."""

from pallas_kernels import bench, results


def test_a_run_is_set_against_the_one_its_group_names():
    group = bench.BenchCase(
        "toy", {"fast": lambda: 0, "slow": lambda: sum(range(20000))}, "fast", "two loops", 5
    )
    rows = {row["run"]: row for row in bench.run(group)}
    assert rows["fast"]["ratio"] == 1
    assert rows["slow"]["ratio"] > 1
    assert rows["slow"]["min_ms"] <= rows["slow"]["median_ms"]


def test_the_csv_says_what_it_was_measured_on(tmp_path):
    out = tmp_path / "new" / "bench.csv"
    rows = [bench.row("op", "run", [0.001, 0.003, 0.002], 0.004, "other", "a note")]
    results.write_csv(out, rows, about="hand", device="abacus", seed=0)
    lines = out.read_text().splitlines()
    facts = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
    assert facts.keys() == {"about", "device", "seed", "versions", "commit"}
    assert facts["device"] == "abacus"
    (row,) = results.read_csv(out)
    assert (row["median_ms"], row["ratio"], row["against"]) == ("2.0", "0.5", "other")
    assert list(out.parent.iterdir()) == [out]


def test_a_group_that_does_not_exist_is_one_sentence_and_exit_code_2(run_module):
    done = run_module("pallas_kernels.bench", "--only=typo")
    assert done.returncode == 2
    assert "matches none of attention_window" in done.stderr
