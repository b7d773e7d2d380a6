"""``counterpoint study``: strategies by seeds, planned contrasts, one table."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from counterpoint.cli._console import ConsoleReporter, quiet_libraries, setting_findings
from counterpoint.errors import ConfigError, CounterpointError, RunError, listed

if TYPE_CHECKING:
    from counterpoint.study import Study

FAILED = 1


def study(
    file: Annotated[Path, typer.Argument(metavar="STUDY", help="Study file (YAML).", show_default=False)],
    folder: Annotated[Path, typer.Option("--dir", help="Folder of all studies.")] = Path("studies"),
    name: Annotated[str | None, typer.Option("--name", help="Name of the study instead of the file's.")] = None,
    parallel: Annotated[
        int | None, typer.Option("--parallel", "-p", min=1, help="Runs at a time instead of the file's number.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Check everything, say what is missing and the power, and stop.")
    ] = False,
    table: Annotated[bool, typer.Option("--table", help="Run nothing; make the tables of what there is.")] = False,
) -> None:
    """Compare strategies: every row of STUDY with every seed, from one base model, on the same prompts and budget.

    Everything is checked before the first run. Runs go on where they stopped: call it again after Ctrl-C, a kill or a
    failure, or after adding rows or seeds, and it does only what is missing. Leaves DIR/NAME with runs/, study.json,
    .md, .csv, .tex and .html. Exit status 1 if a run failed; the others go on.

    A study file:

      name: pocket
      config: pocket-base.yaml      # what all rows start from
      seeds: 5
      rows: {base: base, mixed: mixed, mgs: mgs, sequential: sequential}
      contrasts: [{row: mgs, measure: average}]     # planned: these decide

    Examples:

      counterpoint study examples/pocket-study.yaml --check

      counterpoint study examples/pocket-study.yaml

      counterpoint study examples/pocket-study.yaml --table
    """
    quiet_libraries()
    from counterpoint.study import load_study

    loaded = load_study(file, setting_findings)
    home = folder / (name or loaded.config.name)
    if table:
        _table(loaded, home)
        return
    _check_runs(loaded)
    _run(loaded, home, parallel or loaded.config.parallel, check=check)


def _check_runs(loaded: "Study") -> None:
    """Builds TRL's settings of every row, and loads the prompts of every different set of domains, before any run."""
    from counterpoint.engine.prepare import check_config, plan_checked

    problems: dict[str, None] = {}
    seen = set()
    for (row, _), config in loaded.configs.items():
        problems |= dict.fromkeys(f"rows.{row}: {problem}" for problem in check_config(config))
        data = config.model_dump_json(include={"domains", "model", "max_prompt_tokens", "evaluation"})
        if not problems and data not in seen:
            seen.add(data)
            try:
                plan_checked(config)
            except CounterpointError as error:
                problems |= dict.fromkeys(f"rows.{row}: {line}" for line in str(error).splitlines())
    if problems:
        raise ConfigError(listed("The study has", list(problems)))


def _run(loaded: "Study", home: Path, parallel: int, *, check: bool) -> None:
    from counterpoint.disk import write_text
    from counterpoint.study import StudyFolder, check_unchanged, expected_power, plan_jobs, run_jobs

    folder = StudyFolder(home)
    jobs = plan_jobs(loaded, folder.runs)
    check_unchanged(jobs, folder)
    records = {job.id: folder.record(job.id) for job in jobs}
    missing = [name for name, record in records.items() if record is None or record.status != "done"]
    done = len(jobs) - len(missing)
    typer.echo(f"{home}: {len(jobs)} runs of {len(loaded.rows)} rows, {done} done, {parallel} at a time.")
    for sentence in expected_power(loaded, home):
        typer.echo(sentence)
    if check:
        typer.echo("Missing: " + (", ".join(missing) or "nothing"))
        return
    with folder:
        write_text(folder.path / "study.yaml", loaded.to_yaml())
        folder.keep_plan(loaded.contrasts)
        with ConsoleReporter() as reporter:
            records_now = run_jobs(jobs, folder, parallel, reporter)
    _table(loaded, home)
    if failed := [record for record in records_now.values() if record.status == "failed"]:
        for record in failed:
            typer.secho(f"{record.id} failed: {record.reason}", fg="red", err=True)
            typer.echo(f"  Its log: {folder.log(record.id)}", err=True)
        raise typer.Exit(FAILED)


def _table(loaded: "Study", home: Path) -> None:
    """Writes the files of results from what is done, and prints the tables."""
    from rich.console import Console

    from counterpoint.report import write_study_report
    from counterpoint.study import StudyFolder, summarize

    if not home.is_dir():
        raise RunError(f"{home}: there is no such study yet. Run it without --table first.")
    result = summarize(loaded, StudyFolder(home))
    result.write_all(home)
    Console().print(result, highlight=False)
    typer.echo(f"By domain: {home / 'study.md'}, .csv, .tex. Report: {write_study_report(home)}")
