import json
from pathlib import Path

import pytest

from medinit_jax import main as main_lib
from medinit_jax.core.errors import UsageError
from medinit_jax.study import run

VARIANTS = ("hyper_table2", "hyper_fig2", "hyper_fig3", "hyper_fig4")
RATES = "--config.sizes.mini.learning_rates=(0.003, 0.01, 0.05)"


def load(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def result(workdir: Path):
    return load(workdir / "jobs.json"), load(workdir / "summary.json")["table"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_study_runs_to_its_report(study, routes, tmp_path, variant):
    run(study(variant), tmp_path / "study")
    jobs, table = result(tmp_path / "study")
    assert {job["status"] for job in jobs} == {"done"} and len(routes.calls) == len(jobs)
    assert all(not row["reason"] and row["best"]["mean"] for row in table)
    assert (tmp_path / "study" / "report.html").is_file()
    summary = load(tmp_path / "study" / "summary.json")
    assert (summary["jobs_done"], summary["jobs_failed"], summary["jobs_open"]) == (len(jobs), 0, 0)


def test_the_same_command_does_nothing_twice(study, routes, tmp_path):
    for _ in range(2):
        run(study(), tmp_path / "study")
    assert len(routes.calls) == len(set(routes.calls))


def test_every_job_says_where_its_lines_are(study, routes, tmp_path, capsys):
    run(study(), tmp_path / "study")
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Job ")]
    jobs = {job["id"]: job["name"] for job in result(tmp_path / "study")[0]}
    files = [Path(line.partition("how far it is: ")[2]) for line in said]
    assert sorted(file.stem for file in files) == sorted(jobs) and all(f.is_file() for f in files)
    assert all(jobs[f.stem] in line for f, line in zip(files, said, strict=True))


def test_another_study_takes_the_runs_that_are_there(study, routes, tmp_path):
    run(study("hyper_fig2"), tmp_path / "one")
    before = set(routes.calls)
    run(study("hyper_table2"), tmp_path / "two")
    assert len(routes.calls) == len(set(routes.calls))
    jobs, _ = result(tmp_path / "two")
    assert before & {job["id"] for job in jobs}


def test_stopped_anywhere_the_same_command_comes_to_the_same(study, routes, tmp_path):
    run(study("hyper_fig4", RATES), tmp_path / "whole")
    wanted = result(tmp_path / "whole")
    stops = 0

    def stop(config, summary):
        # At every fifteenth call, as a signal would.
        if len(routes.calls) % 15 == 0:
            raise KeyboardInterrupt

    routes.on = stop
    other = [RATES, f"--config.jobs_dir={tmp_path}/other"]
    while True:
        try:
            run(study("hyper_fig4", *other), tmp_path / "parts")
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops > 3
    found = result(tmp_path / "parts")
    for job in (*wanted[0], *found[0]):
        del job["folder"]
    assert found == wanted


def test_the_grid_chooses_for_every_seed(study, routes, tmp_path):
    run(study("hyper_fig4", RATES), tmp_path / "study")
    jobs, table = result(tmp_path / "study")
    assert {row["learning_rate"] for row in table} == {0.01}
    assert all(len(row["jobs"]) == 2 for row in table)
    # Three initializers; per cell three points with the first seed, the chosen one with the other.
    assert len(jobs) == 3 + 4 * len(table)


def test_a_failed_initializer_blocks_its_modality_and_is_tried_once(study, routes, tmp_path):
    def fail(config, summary):
        if config.route == "hyper" and config.data.name == "ct":
            raise UsageError("No images of CT.")

    routes.on = fail
    run(study("hyper_fig4", RATES), tmp_path / "study")
    jobs, table = result(tmp_path / "study")
    failed = [job for job in jobs if job["status"] == "failed"]
    blocked = [job for job in jobs if job["status"] == "blocked"]
    assert [(job["name"], job["reason"]) for job in failed] == [
        ("initializer ct", "No images of CT.")
    ]
    assert {(job["task"], job["start"] != "random") for job in blocked} == {("rsna_ihd", True)}
    assert all(failed[0]["id"] in job["reason"] for job in blocked)
    for row in table:
        missing = row["task"] == "rsna_ihd" and row["start"] != "random"
        assert ("No images of CT." in row["reason"]) == missing == (row["best"]["mean"] is None)
    assert routes.calls.count(failed[0]["id"]) == 1
    routes.on = lambda config, summary: None
    run(study("hyper_fig4", RATES), tmp_path / "study")
    assert {job["status"] for job in result(tmp_path / "study")[0]} == {"done"}


def test_a_cell_whose_grid_diverged_says_so(study, routes, tmp_path):
    def diverge(config, summary):
        if config.route == "finetune" and config.init.start == "matched":
            summary["diverged"] = True

    routes.on = diverge
    run(study("hyper_fig4", RATES), tmp_path / "study")
    _, table = result(tmp_path / "study")
    for row in table:
        assert ("diverged" in row["reason"]) == (row["start"] == "matched")


def test_another_plan_in_the_folder_is_refused_unless_fresh(study, routes, tmp_path):
    workdir = tmp_path / "study"
    run(study(), workdir)
    before = len(routes.calls)
    held = (workdir / "summary.json").read_bytes()
    changed = "--config.sizes.mini.seeds=3"
    with pytest.raises(UsageError, match=r"config\.sizes\.mini\.seeds.*fresh"):
        run(study("hyper_fig4", changed), workdir)
    assert (workdir / "summary.json").read_bytes() == held and len(routes.calls) == before
    run(study("hyper_fig4", changed, "--config.fresh=True"), workdir)
    _, table = result(workdir)
    assert all(len(row["jobs"]) == 3 for row in table)
    # Only the third seed was run.
    assert len(routes.calls) == before + len(table)
    assert len(routes.calls) == len(set(routes.calls))


def test_runs_on_other_images_are_not_set_beside_each_other(study, routes, tmp_path):
    def drawn(config, summary):
        if config.route == "finetune":
            summary["data"] = {"test": {"sha256": "old" if config.seed == 42 else "new"}}

    routes.on = drawn
    with pytest.raises(UsageError, match="judged on different images of phantom"):
        run(study(), tmp_path / "study")
    calls = len(routes.calls)
    with pytest.raises(UsageError, match="remove the folder of the older one"):
        run(study(), tmp_path / "study")
    # Said before anything runs.
    assert len(routes.calls) == calls


def test_a_folder_of_images_is_named_in_the_notes(study, routes, tmp_path):
    given = (f"--config.images.fundus={tmp_path}", "--config.size=real", "--config.only=")
    rates = "--config.sizes.real.learning_rates=(0.01,)"
    run(study("hyper_fig3", rates, *given), tmp_path / "study")
    (note,) = load(tmp_path / "study" / "summary.json")["notes"]
    assert str(tmp_path) in note and "which was not checked" in note


def test_one_job_alone(study, routes, tmp_path, capsys):
    run(study("hyper_fig4", "--config.runner=commands"), tmp_path / "study")
    assert routes.calls == []
    jobs, _ = result(tmp_path / "study")
    needy = next(job for job in jobs if job["needs"])
    with pytest.raises(UsageError, match="not done"):
        run(study("hyper_fig4", f"--config.only={needy['id']}"), tmp_path / "study")
    for name in (*needy["needs"], needy["id"]):
        run(study("hyper_fig4", f"--config.only={name}"), tmp_path / "study")
    assert routes.calls == [*needy["needs"], needy["id"]]
    with pytest.raises(UsageError, match="no job 'x'"):
        run(study("hyper_fig4", "--config.only=x"), tmp_path / "study")


def test_the_command_line_takes_a_study(routes, tmp_path, capsys):
    root = Path(__file__).resolve().parents[2]
    words = ["main", f"--config={root}/configs/study.py:hyper_fig4", f"--workdir={tmp_path}/s"]
    words.append(f"--config.jobs_dir={tmp_path}/jobs")
    assert main_lib.main(words) == 0 and (tmp_path / "s" / "report.html").is_file()
    assert main_lib.main([*words, "--config.runner=cloud"]) == 2
    assert "local, ray, commands, slurm" in capsys.readouterr().err


def test_an_unknown_study_is_refused(study, routes, tmp_path):
    with pytest.raises(UsageError, match="'hyper_table2', 'hyper_fig2'.*'swcl_chain'"):
        study("hyper_fig5")
    config = study("hyper_fig4")
    with config.unlocked():
        config.study = "hyper_fig5"
    with pytest.raises(UsageError, match="set it to one of: hyper_table2, hyper_fig2"):
        run(config, tmp_path / "study")
