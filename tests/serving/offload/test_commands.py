"""The commands as a user starts them."""

import json

import pytest


def offload(run_module, *args):
    done = run_module("serving.offload", *args)
    return done, json.loads(done.stdout) if done.returncode == 0 and "--json" in args else None


def test_plan_prints_the_artifacts_example(run_module):
    done = run_module("serving.offload", "plan", "--model=mixtral-8x7b", "--hardware=l4", "--prompt=77")
    assert done.returncode == 0, done.stderr
    assert "324 x 14 rows (N = 4536), r_w 0.0559 = 14 of 256 experts resident" in done.stdout


def test_plan_as_json_draws_the_roofline(run_module, tmp_path):
    picture = tmp_path / "roofline.svg"
    args = ("--hardware=t4", "--prompt=418", "--json", f"--roofline={picture}")
    done, report = offload(run_module, "plan", *args)
    assert done.returncode == 0, done.stderr
    assert (report["micro_batch"], report["micro_batches"], report["schedule"]) == (36, 14, "s1")
    assert picture.read_text().lstrip().startswith("<?xml")


def test_simulate_writes_a_picture_and_a_trace_of_every_schedule(run_module, tmp_path):
    picture, trace = tmp_path / "gantt.png", tmp_path / "trace.json"
    sizes = ("--micro_batch=64", "--micro_batches=3", "--layers=5")
    done, report = offload(run_module, "simulate", *sizes, "--json", f"--gantt={picture}", f"--trace={trace}")
    assert done.returncode == 0, done.stderr
    by_name = {row["schedule"]: row["pass_s"] for row in report["schedules"]}
    assert by_name["s1"] <= min(by_name["s2"], by_name["s3"]) <= by_name["serial"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    events = json.loads(trace.read_text())["traceEvents"]
    assert {event["args"]["name"] for event in events if event["name"] == "process_name"} == set(by_name)


def test_the_papers_settings_stand_beside_its_figures(run_module):
    config = (
        "--config=configs/moe_lightning.py",
        "--config.settings=('S1',)",
        "--config.generate_tok=(128,)",
    )
    done = run_module("serving.simulate", *config, "--json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    assert row["batch_padded"] == 504
    assert row["paper_over_s4_padded"] == pytest.approx(30.1 / 9.5)
    assert row["s1_tok_per_s"] > max(row[f"{name}_tok_per_s"] for name in ("s2", "s3", "s4", "zero"))


def test_calibrate_measures_a_file(run_module, tmp_path):
    file, out = tmp_path / "weights.bin", tmp_path / "rates.json"
    file.write_bytes(b"\1" * (5 << 20))
    done, report = offload(
        run_module, "calibrate", f"--file={file}", "--rounds=1", "--read_mb=4", "--json", f"--out={out}"
    )
    assert done.returncode == 0, done.stderr
    assert min(report["read_Bps"], report["copy_Bps"], report["matmul_flops"]) > 0
    assert json.loads(out.read_text()) == report


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("walk",), "'walk' is not one of plan, simulate, calibrate"),
        (("plan", "--model=llama"), "unknown model 'llama'; known: mixtral-8x7b"),
        (("plan", "--hardware=abacus"), "unknown hardware 'abacus'; known: l4"),
        (("plan", "--device_memory_gb=2"), "of device memory; 86% of 2.00 GiB may be used, and at least"),
        (("plan", "--device_memory_gb=-1"), "it must be above 0"),
        (("plan", "--generate=1"), "at least 1 and 2"),
        (("simulate", "--micro_batch=3"), "--micro_batch is 3 and --micro_batches None; give both or none"),
        (("simulate", "--gantt=picture.gif"), "must end in .png or .svg"),
        (("simulate", "--layers=-2"), "layers is -2"),
        (("calibrate",), "give exactly one"),
    ],
)
def test_bad_input_ends_with_one_sentence(run_module, args, message):
    done = run_module("serving.offload", *args)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1
