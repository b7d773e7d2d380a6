"""``counterpoint diagnose routes``: which neurons and heads each domain uses, and what two domains share."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from counterpoint.errors import CounterpointError

if TYPE_CHECKING:
    from counterpoint.config import Config
    from counterpoint.diagnosis.route_analysis.direction import EditTensors


class Tokens(StrEnum):
    """Tokens that contributions are averaged over."""

    completion = "completion"
    prompt = "prompt"
    all = "all"


Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Checkpoint folder, hub id, or pocket: where routes are measured.")
]
ConfigPath = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="Configuration file, or run directory, with the domains.")
]
Domains = Annotated[
    list[str] | None, typer.Option("--domain", metavar="NAME", help="Only this domain. Repeatable; default: all.")
]
Edits = Annotated[
    list[str] | None,
    typer.Option(
        "--edit",
        metavar="DOMAIN=CHECKPOINT",
        help="The checkpoint after training DOMAIN. Two or more give the direction on shared routes.",
    ),
]
Bases = Annotated[
    list[str] | None,
    typer.Option(
        "--base",
        metavar="[DOMAIN=]CHECKPOINT",
        help="The checkpoint before it, of all edits or of DOMAIN's. Default: the configuration's model.",
    ),
]
Completions = Annotated[
    Path | None,
    typer.Option("--completions", metavar="FILE", help="Completions an analysis saved, instead of sampling."),
]
PerLayer = Annotated[bool, typer.Option("--per-layer", help="Take the top of each layer, not of the whole model.")]
Json = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="FILE",
        help="Also write everything there, as JSON, and sampled completions beside it (FILE.completions.jsonl).",
    ),
]


def routes(
    model: Model,
    config: ConfigPath,
    domain: Domains = None,
    edit: Edits = None,
    base: Bases = None,
    completions: Completions = None,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts sampled per domain.")] = 64,
    samples: Annotated[int, typer.Option(min=1, help="Completions per prompt.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Seed of sampling, resampling and controls.")] = 0,
    fraction: Annotated[float, typer.Option(help="Share of units that form the active route.")] = 0.1,
    per_layer: PerLayer = False,
    tokens: Annotated[Tokens, typer.Option(help="Tokens that contributions are averaged over.")] = Tokens.completion,
    minimum_cosine: Annotated[
        float, typer.Option(min=0, max=1, help="Cosines of edits nearer to 0 are neutral.")
    ] = 0.05,
    batch_size: Annotated[int, typer.Option(min=1, help="Completions in one forward pass.")] = 32,
    json: Json = None,
) -> None:
    """Show which neurons and heads each domain uses, how far two domains share them, and who pulls them where.

    A route is the top of all neurons (or heads) by mean absolute contribution on a domain's own completions. Overlaps
    stand beside chance, and each route beside itself on other prompts.

    Examples:

      counterpoint diagnose routes pocket examples/pocket-sequential.yaml

      counterpoint diagnose routes runs/seq/checkpoints/step-40 runs/seq --base qa=runs/seq/checkpoints/step-40
      --edit math=runs/seq/checkpoints/step-40 --edit qa=runs/seq/checkpoints/step-80 --json routes.json
    """
    from counterpoint.cli.running import quiet_libraries

    quiet_libraries()
    _check_fraction(fraction)
    sampling = {"file": completions, "prompts": prompts, "samples": samples, "seed": seed}
    settings = {"fraction": fraction, "per_layer": per_layer, "tokens": tokens.value, "batch_size": batch_size}
    _measure(model, config, domain, (edit or (), base or ()), sampling, settings | {"minimum": minimum_cosine}, json)


def _measure(
    model: str,
    config: Path,
    domains: Sequence[str] | None,
    edits_and_bases: tuple[Sequence[str], Sequence[str]],
    sampling: dict[str, Any],
    settings: dict[str, Any],
    json: Path | None,
) -> None:
    from counterpoint.cli.diagnose.routes_tables import print_routes
    from counterpoint.cli.progress import ConsoleReporter
    from counterpoint.diagnosis import routes as measure
    from counterpoint.diagnosis import write_result
    from counterpoint.diagnosis.subject import completions_for, config_of, open_subject, wanted_domains

    loaded = config_of(config)
    edits = open_edits(loaded, *edits_and_bases, wanted_domains(loaded, domains))
    subject = open_subject(loaded, model, domains)
    save = json.with_name(f"{json.name}.completions.jsonl") if json else None
    with ConsoleReporter() as reporter:
        show = reporter.working
        rollouts = completions_for(subject, save=save, on_progress=show, **sampling)
        found = measure(
            subject.model,
            subject.tokenizer,
            rollouts,
            edits=edits,
            seed=sampling["seed"],
            on_progress=show,
            **settings,
        )
    if json is not None:
        write_result(json, "routes", found)
    print_routes(found)


def open_edits(
    config: "Config", edits: Sequence[str], bases: Sequence[str], domains: Sequence[str]
) -> "dict[str, EditTensors]":
    """The edits of ``DOMAIN=CHECKPOINT`` and ``[DOMAIN=]BASE``; opens headers only.

    Raises:
        CounterpointError: a malformed option, an unknown or repeated domain, a single edit, or a base without edit.
        ModelError: checkpoints that cannot be compared.
    """
    from counterpoint.checkpoints import compare, open_checkpoint
    from counterpoint.diagnosis.route_analysis.direction import EditTensors

    after = parse_edits(edits, domains)
    before = _bases(bases, domains, str(config.model.path))
    if bases and not after:
        raise CounterpointError("--base is given without --edit. Add --edit DOMAIN=CHECKPOINT for two domains.")
    if len(after) == 1:
        raise CounterpointError(
            f"--edit {edits[0]}: a direction on a shared route needs the edits of two domains. Add another --edit."
        )
    opened = {path: open_checkpoint(path) for path in dict.fromkeys([*after.values(), *map(before.get, after)]) if path}
    return {name: EditTensors(compare(opened[before[name]], opened[path])) for name, path in after.items()}


def parse_edits(values: Sequence[str], domains: Sequence[str]) -> dict[str, str]:
    """``DOMAIN=CHECKPOINT`` as a dictionary, the domains checked."""
    from counterpoint.errors import nearest

    found: dict[str, str] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not (name and equals and path):
            raise CounterpointError(
                f"--edit {value}: write DOMAIN=CHECKPOINT, e.g. --edit math=runs/a/checkpoints/step-40."
            )
        if name not in domains:
            raise CounterpointError(f"--edit {value}: there is no domain {name!r} here; {nearest(name, domains)}")
        if name in found:
            raise CounterpointError(
                f"--edit {value}: {name!r} has an edit already, {found[name]}. Give one per domain."
            )
        found[name] = path
    return found


def _bases(values: Sequence[str], domains: Sequence[str], default: str) -> dict[str, str]:
    """Every domain's base: its own, else the one without a name, else the configuration's model."""
    named: dict[str, str] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if equals and name in domains:
            named[name] = path
        elif equals and not Path(value).exists():
            from counterpoint.errors import nearest

            raise CounterpointError(f"--base {value}: there is no domain {name!r} here; {nearest(name, domains)}")
        else:
            default = value
    return {name: named.get(name, default) for name in domains}


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction <= 1:
        raise CounterpointError(f"--fraction {fraction}: a route's share must be above 0 and at most 1. Try 0.1.")
