"""``counterpoint config``: check a configuration file, print its JSON schema."""

from pathlib import Path
from typing import Annotated

import typer

from counterpoint.errors import ConfigError

app = typer.Typer(help="Check a configuration file, or print the schema it must follow.", no_args_is_help=True)


@app.command()
def check(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The YAML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Write one value over the file's: --set training.max_steps=20."
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Print the file with every default filled in.")] = False,
) -> None:
    """Report everything wrong with CONFIG at once, each problem with its line, its key and what to do.

    The keys under `training` are checked by building TRL's own configuration. Data, model and tokenizer are not
    touched; `counterpoint train` checks them before it starts.
    """
    from counterpoint.cli.loading import load
    from counterpoint.cli.running import quiet_libraries

    quiet_libraries()
    checked = load(config, overrides)
    from counterpoint.engine.prepare import check_config

    if problems := check_config(checked):
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigError("\n".join([f"{config}: the configuration has {count}:", *(f"  {item}" for item in problems)]))
    if show:
        typer.echo(checked.to_yaml(), nl=False)
    else:
        domains = ", ".join(checked.domains)
        typer.echo(f"{config}: fine. Strategy {checked.strategy.label}, domains {domains}, run {checked.run.name}.")


@app.command()
def schema() -> None:
    """Print the JSON schema of a configuration file; editors complete and check YAML by it."""
    import json

    from counterpoint.config import config_schema

    typer.echo(json.dumps(config_schema(), indent=2))
