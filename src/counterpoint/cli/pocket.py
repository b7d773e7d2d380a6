"""``counterpoint pocket``: look at the shipped pocket model, or train it again from nothing."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="The pocket test bed: a tiny model and four toy domains, built in.")

DomainArgument = Annotated[
    str, typer.Argument(metavar="DOMAIN", help="One of the pocket domains: math, code, qa or writing.")
]


@app.command()
def info() -> None:
    """Show where the shipped base model lies, how it was made and what it reaches on held-out prompts."""
    from counterpoint.pocket.show import print_info

    print_info()


@app.command()
def sample(
    domain: DomainArgument,
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="Folder of another model, such as a checkpoint of a run.")
    ] = None,
    prompts: Annotated[int, typer.Option("--prompts", "-n", min=1, help="How many held-out prompts to show.")] = 8,
    seed: Annotated[int, typer.Option(help="Seed of the sampled answers.")] = 0,
) -> None:
    """Show held-out prompts of a domain with a greedy and a sampled answer of the model, and their rewards."""
    from counterpoint.pocket.show import print_samples

    print_samples(domain, model, prompts=prompts, seed=seed)


@app.command()
def build(
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Folder to write: a Hugging Face model folder. It must be new or empty."),
    ] = Path("pocket-base"),
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of supervised learning on gold answers. Default: as shipped.")
    ] = None,
    noisy_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps on answers of which many are noise. Default: as shipped.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the first weights and of every batch.")] = 0,
    prompts: Annotated[int, typer.Option(min=1, help="Held-out prompts of each domain to measure it on.")] = 512,
) -> None:
    """Train the pocket base model from nothing: about six minutes of processor time, on two cores.

    The weights are the same bit for bit each time on one machine.
    """
    from counterpoint.pocket.show import build_with_progress

    build_with_progress(output, steps=steps, noisy_steps=noisy_steps, seed=seed, prompts=prompts)
