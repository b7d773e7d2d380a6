"""``counterpoint diagnose``: where and why one domain hurts another, in a run or in given checkpoints."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from counterpoint.errors import CounterpointError

if TYPE_CHECKING:
    from counterpoint.cli._console import ConsoleReporter
    from counterpoint.diagnosis import PartDone

PARTIAL = 3
"""Exit status where an analysis could not be made and the others are there."""


class Effort(StrEnum):
    """How much is measured."""

    quick = "quick"
    usual = "usual"
    thorough = "thorough"


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
        Effort,
        typer.Option(help="quick: half the completions, fewer controls. thorough: the spectrum of the Hessian too."),
    ] = Effort.usual,
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
    from counterpoint.cli._console import ConsoleReporter, quiet_libraries

    quiet_libraries()
    names = [name.strip() for name in only.split(",")] if only is not None else None
    others = parse_alone(alone or ())
    given = {"--base": base, "--before": before, "--domain": domain, "--other": other, "--out": out}
    if after is None and (wrong := [name for name, value in given.items() if value is not None]):
        raise CounterpointError(f"{wrong[0]} is for given checkpoints. Give --after too, the checkpoint to diagnose.")
    if after is not None and domain is None:
        raise CounterpointError("--after needs --domain, the domain that may have suffered.")
    if after is not None and others:
        raise CounterpointError("--alone compares runs, and --after gives checkpoints. Leave one of them out.")
    from counterpoint.diagnosis import DiagnoseOptions, diagnose_checkpoints
    from counterpoint.diagnosis import diagnose as diagnose_run
    from counterpoint.report import write_checkpoints, write_report

    options = DiagnoseOptions(prompts, samples, effort.value, seed)
    with ConsoleReporter() as reporter:

        def tell(part: "PartDone") -> None:
            _tell(part, reporter)

        if after is None or domain is None:
            folder = source
            found = diagnose_run(source, options, only=names, alone=others, on_progress=reporter.working, on_part=tell)
        else:
            folder = out or Path(f"diagnosis-{domain}")
            found = diagnose_checkpoints(
                source,
                base=base,
                before=before,
                after=after,
                domain=domain,
                other=other,
                out=folder,
                options=options,
                only=names,
                on_progress=reporter.working,
                on_part=tell,
            )
        reporter.console.print(found, highlight=False)
        page = write_report(folder) if after is None else write_checkpoints(folder)
        reporter.message(f"Report: {page}")
    if found.failed:
        raise typer.Exit(PARTIAL)


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
