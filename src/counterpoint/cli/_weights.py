"""What the domains of a configuration will weigh, as far as that can be known before training."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from counterpoint.balance import BALANCES, COUNTS_BY, DEFAULT_LOSS, expected_weights, fractions, out_of_balance
from counterpoint.errors import ConfigError, nearest

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from counterpoint.config import Config

Lengths = Annotated[
    str | None,
    typer.Option(
        "--lengths",
        metavar="LENGTHS",
        help="Tokens of each domain's completions, math=400,chat=80, or a run directory that has them; says what they "
        "weigh.",
    ),
]


def say_weights(config: "Config", lengths: "Mapping[str, float] | None") -> None:
    """Prints what each domain will weigh, and a recommendation where that is far from its share."""
    loss_type, name = str(config.training.get("loss_type", DEFAULT_LOSS)), config.balance.name
    if len(config.domains) < 2 or config.strategy.sequential or loss_type not in COUNTS_BY:
        return
    shares = fractions({domain: one.share for domain, one in config.domains.items()})
    if said := _changes(config):
        typer.echo(said)
    if name != "none":
        typer.echo(f"Weights: balance {name}. {BALANCES[name].summary()}")
    elif lengths is not None:
        _show(shares, lengths, loss_type)
    elif COUNTS_BY[loss_type] == "tokens":
        example = ",".join(f"{domain}=TOKENS" for domain in shares)
        typer.echo(
            f"Weights: loss_type {loss_type!r} counts a domain by the tokens of its completions, not by its share. "
            f"--lengths {example} says what that makes of it."
        )


def _changes(config: "Config") -> str | None:
    """What becomes of the shares and weights of the start; None where they stay."""
    if config.curriculum is not None:
        return f"Shares and weights: those of the start; the curriculum {config.curriculum.function} changes them."
    parts = [
        f"step {entry.step} {key} " + (", ".join(f"{domain} {value:g}" for domain, value in named.items()) or "all 1")
        for entry in config.schedule
        for key, named in (("shares", entry.shares), ("weights", entry.weights))
        if named is not None
    ]
    return f"Schedule: what follows is for the start. From {'; from '.join(parts)}." if parts else None


def _show(shares: "Mapping[str, float]", lengths: "Mapping[str, float]", loss_type: str) -> None:
    from rich.console import Console

    from counterpoint.tables import Table

    weights = expected_weights(loss_type, shares, lengths)
    rows = tuple((name, 100 * shares[name], lengths[name], 100 * weights[name]) for name in shares)
    columns = ("domain", "share, %", "tokens", "effective weight, %")
    forms = {"share, %": ".0f", "tokens": ",.0f", "effective weight, %": ".0f"}
    Console().print(Table(f"What a domain weighs under {loss_type}", columns, rows, forms))
    if sentence := out_of_balance(weights, shares, loss_type):
        typer.echo(sentence)


def read_lengths(text: str, domains: "Collection[str]") -> dict[str, float]:
    """The mean length of each domain's completions, from ``math=400,chat=80`` or the metrics of a run.

    Raises:
        ConfigError: what cannot be read, or a domain that is missing or unknown.
    """
    found = _logged(Path(text)) if Path(text).is_dir() else _given(text)
    for name in found:
        if name not in domains:
            raise ConfigError(f"--lengths {text}: unknown domain {name!r}: {nearest(name, domains)}")
    if missing := [name for name in domains if name not in found]:
        raise ConfigError(f"--lengths {text}: no length for {', '.join(missing)}. Give one for every domain.")
    return found


def _given(text: str) -> dict[str, float]:
    found = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        try:
            tokens = float(value)
        except ValueError:
            tokens = math.nan
        if not equals or not (tokens > 0 and math.isfinite(tokens)):
            raise ConfigError(
                f"--lengths {text}: {part!r} is no length. Write DOMAIN=TOKENS, divided by commas: math=400,chat=80."
            )
        found[name.strip()] = tokens
    return found


def _logged(path: Path) -> dict[str, float]:
    from counterpoint.runs.run import Run
    from counterpoint.runs.weights import means_of

    return means_of(["completion_length"], Run.open(path).metrics)["completion_length"]
