"""``counterpoint diagnose damage``: what a later edit costs an earlier domain, predicted and measured."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from counterpoint.errors import CounterpointError


class Surrogate(StrEnum):
    """The loss whose rise is called damage."""

    policy = "policy"
    likelihood = "likelihood"


class Baseline(StrEnum):
    """What a reward is compared with."""

    prompt = "prompt"
    domain = "domain"


def damage(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="Configuration file, or run directory, with the domains.")
    ],
    base: Annotated[
        str, typer.Option("--base", metavar="CHECKPOINT", help="The checkpoint right after the domain's own stage.")
    ],
    after: Annotated[str, typer.Option("--after", metavar="CHECKPOINT", help="A later checkpoint of the same model.")],
    domain: Annotated[str, typer.Option("--domain", metavar="NAME", help="The domain that may have suffered.")],
    other: Annotated[
        str | None,
        typer.Option(
            "--other", metavar="NAME", help="The later domain: also cut the damage into shared neurons and the rest."
        ),
    ] = None,
    surrogate: Annotated[
        Surrogate, typer.Option(help="Loss: policy gradient with ratios to --base, or likelihood of good completions.")
    ] = Surrogate.policy,
    baseline: Annotated[
        Baseline, typer.Option(help="Rewards are compared within a prompt (GRPO), or with the domain's mean.")
    ] = Baseline.prompt,
    completions: Annotated[
        Path | None,
        typer.Option("--completions", metavar="FILE", help="Completions of --base an analysis saved: no sampling."),
    ] = None,
    held_out: Annotated[bool, typer.Option("--held-out", help="Sample on held-out rows instead.")] = False,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Also sample both checkpoints on held-out rows and compare rewards.")
    ] = False,
    prompts: Annotated[int, typer.Option(help="Prompts sampled per domain.")] = 64,
    samples: Annotated[int, typer.Option(help="Completions per prompt.")] = 8,
    batch_size: Annotated[int, typer.Option(help="Completions in memory at once; lower it where memory ends.")] = 8,
    blocks: Annotated[
        bool, typer.Option(help="Every module alone and every pair of modules: one Hessian product per module.")
    ] = True,
    lanczos: Annotated[int, typer.Option(help="Hessian products for the spectrum of the loss; 0 leaves it out.")] = 16,
    top: Annotated[int, typer.Option(help="Eigen-directions whose share of the damage is measured.")] = 8,
    fraction: Annotated[float, typer.Option(help="Share of neurons that form a domain's route.")] = 0.1,
    draws: Annotated[int, typer.Option(help="Random edits, and random sets of neurons, for the chance level.")] = 5,
    scales: Annotated[
        str | None, typer.Option(metavar="LIST", help="Multiples of the edit to measure, e.g. 0.1,0.5,1,1.5.")
    ] = None,
    tolerance: Annotated[float, typer.Option(help="Relative error up to which second order predicts.")] = 0.2,
    seed: Annotated[int, typer.Option(min=0, help="Seed of sampling and of everything random.")] = 0,
    json: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="FILE",
            help="Also write everything there, as JSON, and sampled completions beside it (FILE.completions.jsonl).",
        ),
    ] = None,
) -> None:
    """Show what a later edit costs an earlier domain: first order, second order and Fisher beside the measured damage.

    Damage is the rise of the domain's surrogate loss, per token, on fixed completions of --base. Every part stands
    beside what random edits, random neurons or random directions carry.

    Examples:

      counterpoint diagnose damage --base runs/seq/checkpoints/step-80 --after runs/seq/checkpoints/step-160
      --domain math runs/seq

      counterpoint diagnose damage --base a --after b --domain math --other qa --evaluate --json damage.json config.yaml
    """
    from counterpoint.cli.progress import ConsoleReporter
    from counterpoint.cli.running import quiet_libraries

    quiet_libraries()
    from counterpoint.cli.diagnose.damage_tables import print_damage
    from counterpoint.diagnosis import DamageOptions, write_result
    from counterpoint.diagnosis import damage as measure
    from counterpoint.diagnosis.damage_analysis.range import SCALES

    options = DamageOptions(
        surrogate=surrogate.value,
        baseline=baseline.value,
        prompts=prompts,
        samples=samples,
        batch_size=batch_size,
        blocks=blocks,
        lanczos=lanczos,
        top=top,
        fraction=fraction,
        draws=draws,
        scales=parse_scales(scales) if scales else SCALES,
        tolerance=tolerance,
        seed=seed,
    )
    with ConsoleReporter() as reporter:
        found = measure(
            base,
            after,
            domain,
            config,
            other=other,
            options=options,
            completions=completions,
            save=json.with_name(f"{json.name}.completions.jsonl") if json and not completions else None,
            held_out=held_out,
            measure_reward=evaluate,
            on_progress=reporter.working,
        )
    if json is not None:
        write_result(json, "damage", found)
    print_damage(found)
    if found.stopped:
        raise typer.Exit(1)


def parse_scales(text: str) -> tuple[float, ...]:
    """``0.1,0.5,1`` as numbers."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise CounterpointError(
            f"--scales {text}: write numbers with commas between them, e.g. --scales 0.1,0.5,1,1.5."
        ) from None
