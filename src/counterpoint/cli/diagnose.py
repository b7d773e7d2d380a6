"""``counterpoint diagnose``: where and why one domain hurts another, in a run or in given checkpoints."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from counterpoint.errors import CounterpointError

if TYPE_CHECKING:
    from counterpoint.cli._console import ConsoleReporter
    from counterpoint.diagnosis import PartDone

PARTIAL = 3
"""Exit status where an analysis could not be made and the others are there."""


def diagnose(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|CONFIG", help="A run directory; or, with --after, the configuration of the domains."
        ),
    ],
    only: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Some of behaviour, edits, routes, conflicts, damage; with commas."),
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The model that the domain's training began from.")
    ] = None,
    before: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The checkpoint that was good at the domain.")
    ] = None,
    after: Annotated[
        str | None, typer.Option(metavar="MODEL", help="A later checkpoint, which may have lost it.")
    ] = None,
    domain: Annotated[str | None, typer.Option(help="The domain that may have suffered.")] = None,
    other: Annotated[str | None, typer.Option(help="The domain that was trained later.")] = None,
    effort: Annotated[
        Literal["quick", "usual", "thorough"],
        typer.Option(
            metavar="LEVEL",
            help="usual. quick: half the completions, fewer controls. thorough: the spectrum of the Hessian too.",
        ),
    ] = "usual",
    prompts: Annotated[int, typer.Option(help="Prompts sampled per domain and checkpoint.")] = 128,
    samples: Annotated[int, typer.Option(help="Completions of each prompt.")] = 4,
    alone: Annotated[
        list[str] | None,
        typer.Option(metavar="DOMAIN=RUN", help="A run that trains DOMAIN alone, to judge rigidity. Repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for given checkpoints.", show_default="diagnosis-DOMAIN"),
    ] = None,
) -> None:
    """Show which domain hurt which, where, and how sure that is.

    Writes RUN/diagnosis/*.json and RUN/report.html; of given checkpoints, the same in a folder of their own.

    What is there already, of the same checkpoints and options, is kept.

    An analysis that cannot be made is named, the others go on, and the exit status is 3.

    Examples:

      counterpoint diagnose runs/sequential

      counterpoint diagnose config.yaml --before A --after B --domain math
    """
    from counterpoint.cli._console import progress, quiet_libraries

    quiet_libraries()
    names = [name.strip() for name in only.split(",")] if only is not None else None
    given: dict[str, Any] = {
        "base": base,
        "before": before,
        "after": after,
        "domain": domain,
        "other": other,
        "out": out,
    }
    others = _checked(given, alone or ())
    from counterpoint.diagnosis import DiagnoseOptions, diagnose_checkpoints
    from counterpoint.diagnosis import diagnose as diagnose_run
    from counterpoint.report import write_checkpoints

    with progress() as reporter:
        how: dict[str, Any] = {"options": DiagnoseOptions(prompts, samples, effort, seed), "only": names}
        how |= {"on_progress": reporter.working, "on_part": lambda part: _tell(part, reporter)}
        if after is None:
            reporter.show(found := diagnose_run(source, alone=others, **how))
            reporter.report(source)
        else:
            given["out"] = out or Path(f"diagnosis-{domain}")
            reporter.show(found := diagnose_checkpoints(source, **given, **how))
            reporter.message(f"Report: {write_checkpoints(given['out'])}")
    if found.failed:
        raise typer.Exit(PARTIAL)


def _checked(given: Mapping[str, object], alone: Sequence[str]) -> dict[str, Path | str]:
    """The runs of ``--alone`` by domain, once no option contradicts another."""
    wrong = next((name for name, value in given.items() if value is not None and name != "after"), None)
    if given["after"] is None and wrong is not None:
        raise CounterpointError(f"--{wrong} is for given checkpoints. Give --after too, the checkpoint to diagnose.")
    if given["after"] is not None and given["domain"] is None:
        raise CounterpointError("--after needs --domain, the domain that may have suffered.")
    if given["after"] is not None and alone:
        raise CounterpointError("--alone compares runs, and --after gives checkpoints. Leave one of them out.")
    return parse_alone(alone)


def parse_alone(values: Sequence[str]) -> dict[str, Path | str]:
    """``DOMAIN=RUN`` as a dictionary.

    Raises:
        CounterpointError: no equals sign.
    """
    found: dict[str, Path | str] = {}
    for value in values:
        domain, separator, path = value.partition("=")
        if not separator or not domain or not path:
            raise CounterpointError(f"--alone {value}: write DOMAIN=RUN, e.g. --alone math=runs/math-alone.")
        found[domain] = Path(path)
    return found


def _tell(part: "PartDone", reporter: "ConsoleReporter") -> None:
    words = {
        "done": f"done in {part.seconds:.1f} s",
        "kept": "kept: nothing has changed",
        "failed": f"not measured ({part.reason.rstrip('.')}).",
    }
    if part.status in words:
        reporter.message(f"{part.name}: {words[part.status]}")
