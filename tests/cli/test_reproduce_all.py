"""Everything of a laboratory by one command: what it is made of, what is reused, what it costs."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from alignlab.captioning import table4
from alignlab.cli import run
from alignlab.cli.reproduce_all import Step, is_made, rows_done, steps
from alignlab.restoration import targets

RESULTS = Path(__file__).parents[2] / "reports" / "results"
OPTIONS = {"n": 256, "seed": 0, "no_train": False, "accumulate": None, "device": "auto"}


@pytest.mark.parametrize("lab", ["embedded", "paper"])
def test_every_target_and_every_kind_of_result_is_made(lab):
    made = steps(targets.open_lab(lab), Path("reports/results"), Path("runs"), **OPTIONS)
    names = [step.name for step in made]
    assert len(set(names)) == len(names)
    assert {*targets.TARGETS, table4.NAME} <= set(names)
    firsts = [step.arguments[:2] for step in made]
    for command in (("probe", "layers"), ("probe", "linear"), ("probe", "induction"), ("analyse", "adapters")):
        assert command in firsts
    assert names[-1] == "correlation"  # it reads the others' results


@pytest.mark.parametrize("lab", ["embedded", "paper"])
def test_every_step_is_a_command_that_the_parser_takes(lab, capsys):
    from alignlab.cli import app

    for step in steps(targets.open_lab(lab), Path("reports/results"), Path("runs"), **{**OPTIONS, "seed": 3}):
        # With --help behind it, the parser refuses what it does not know and runs nothing.
        assert run([*step.arguments, "--help"]) == 0, step.command
        assert capsys.readouterr().err == ""
    assert app.info.name == "alignlab"


def test_the_plan_counts_every_run_once(tmp_path, capsys):
    plan = tmp_path / "plan.json"
    assert run(["reproduce", "all", "--lab", "paper", "--dry-run", "--runs", str(tmp_path), "--json", str(plan)]) == 0
    found = json.loads(plan.read_text())
    names = [row["run"] for row in found["rows"]]
    assert len(set(names)) == len(names) > 30
    shared = next(
        row for row in found["rows"] if row["run"].startswith("denoise-lm4lv-vit-mae-large-Llama-2-7b-chat-hf-1")
    )
    assert set(shared["targets"]) == {"table2", "table3", "fig5", "fig6", "fig7", "depth"}
    assert found["hours_left"] == pytest.approx(sum(row["hours_left"] for row in found["rows"]))
    assert found["memory_gb"] == max(row["memory_gb"] for row in found["rows"])
    assert found["download_gb"] > 20
    assert {"ViT-B-32/openai", "bytetriper/vit-mae-r", "dall-e"} <= {need["name"] for need in found["weights"]}
    told = capsys.readouterr().out
    assert "GPU memory at most" in told
    assert "weights: meta-llama/Llama-2-7b-chat-hf: to get" in told


def test_the_plan_keeps_what_is_committed(tmp_path):
    plan = tmp_path / "plan.json"
    reports = ["--out", str(RESULTS.parent), "--runs", str(tmp_path)]
    assert run(["reproduce", "all", "--dry-run", *reports, "--json", str(plan)]) == 0
    found = {row["run"]: row for row in json.loads(plan.read_text())["rows"]}
    committed: dict[str, set[str]] = {}
    for name in targets.TARGETS:
        for row in json.loads((RESULTS / name / "result.json").read_text())["rows"]:
            if name != "table2" or row["status"] != "done" or row["images"] <= 4000:
                committed.setdefault(row["run"], set()).add(row["status"])
    assert committed.keys() < found.keys()  # table4's too; the longer runs of Table 2 are nobody's plan
    for name, states in committed.items():
        assert found[name]["state"] == ("kept" if states == {"done"} else "to do"), name
        assert (found[name]["hours_left"] == 0) == (states == {"done"})
    assert {row["state"] for name, row in found.items() if name.startswith("caption")} == {"kept"}


def test_a_result_of_another_command_or_version_is_not_reused(tmp_path):
    step = Step("measure-scenes", ("measure", "--encoder", "mae"), kept=True)
    folder = tmp_path / step.name
    folder.mkdir()
    from alignlab import __version__

    def write(command, version=__version__):
        environment = {"command": command, "alignlab": version}
        (folder / "result.json").write_text(json.dumps({"environment": environment}))

    assert not is_made(step, tmp_path)
    write("alignlab measure --encoder mae --out elsewhere")
    assert is_made(step, tmp_path)
    write("alignlab measure --encoder mae --out elsewhere", "0.0.1")
    assert not is_made(step, tmp_path)
    write("alignlab measure --encoder beit")
    assert not is_made(step, tmp_path)
    (folder / "result.json").write_text("[]")
    assert not is_made(step, tmp_path)


def test_options_of_one_target_are_refused(capsys):
    for option in (["--only", "denoise"], ["--images", "8"], ["--encoder", "mae"], ["--longest"]):
        assert run(["reproduce", "all", *option]) == 2
        assert option[0] in capsys.readouterr().err


def test_what_is_finished_makes_a_report(tmp_path):
    """Without training: finished results are kept, unfinished runs are gaps, and the page is written."""
    out = tmp_path / "reports"
    for name in ("compute-paper", "table3"):
        shutil.copytree(RESULTS / name, out / "results" / name)
    before = (out / "results" / "table3" / "result.json").read_bytes()
    told = tmp_path / "all.json"
    command = [
        "reproduce",
        "all",
        "--no-train",
        "--runs",
        str(tmp_path / "runs"),
        "--out",
        str(out),
        "--json",
        str(told),
    ]
    done = subprocess.run([sys.executable, "-m", "alignlab", *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    states = {one["step"]: one["state"] for one in json.loads(told.read_text())["steps"]}
    assert states["compute-paper"] == "kept"
    assert states["measure-scenes"] == "left out: it is not made yet"
    assert states["table2"] == "left out: none of its runs is finished"
    assert states["table3"] == "kept: 10 of its rows are done, and no other run lies here"
    assert (out / "results" / "table3" / "result.json").read_bytes() == before
    assert states["adapters"] == "made"  # of those that come along
    page = (out / "embedded.html").read_text()
    assert "table2 is left out: none of its runs is finished" in page
    assert "measure-scenes is left out" in page
    assert "Traceback" not in done.stderr


def test_what_is_committed_counts_as_made():
    """So that a fresh clone does not measure and train for hours what lies in it."""
    made = steps(targets.open_lab("embedded"), RESULTS, Path("runs"), **OPTIONS)
    kept = {step.name for step in made if step.kept and (RESULTS / step.name).is_dir()}
    assert {"measure-scenes", "reconstruct-scenes", "probe-layers", "induction", "compute-paper"} <= kept
    assert [step.name for step in made if step.name in kept and not is_made(step, RESULTS)] == []
    for step in made:
        if step.table and (RESULTS / step.name).is_dir():
            assert rows_done(RESULTS / step.name, {"lab": "embedded", "n": 256, "seed": 0})[0] > 0
    assert {path.name for path in RESULTS.iterdir()} - {step.name for step in made} == {
        "measure-photos",
        "reconstruct-photos",
        "denoise-4000",
        "components-experts",
        "components-vqgan",
        "denoise-both",
        "denoise-free",
        "denoise-photos",
        "denoise-photos-30000",
        "denoise-photos-pca",
        "denoise-photos-pca-linear",
        "denoise-photos-pca-random",
        "components-30000",
        "table3-30000",
        "denoise-strengths",
        "induction-random",
        "paper-plan",
    }


def test_rows_of_another_configuration_do_not_count(tmp_path):
    def rows(**changed):
        config = {"lab": "embedded", "n": 256, "seed": 0} | changed
        found = {"config": config, "rows": [{"status": "done"}, {"status": "missing"}]}
        (tmp_path / "result.json").write_text(json.dumps(found))
        return rows_done(tmp_path, {"lab": "embedded", "n": 256, "seed": 0})

    assert rows_done(tmp_path, {}) == (0, False)
    assert rows() == (1, False)
    assert rows(n=8) == (0, False)
    assert rows(seed=1) == (0, False)


def test_a_step_that_fails_says_which(tmp_path, capsys, monkeypatch):
    from alignlab.cli import reproduce_all

    failing = subprocess.CompletedProcess([], 1)
    monkeypatch.setattr(reproduce_all.subprocess, "run", lambda *_, **__: failing)
    out = tmp_path / "reports"
    assert run(["reproduce", "all", "--no-train", "--runs", str(tmp_path / "runs"), "--out", str(out)]) == 1
    told = capsys.readouterr().err
    assert "step 3 of" in told
    assert "alignlab reproduce table4" in told
