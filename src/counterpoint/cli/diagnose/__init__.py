"""``counterpoint diagnose``: one file per analysis, heavy imports only inside a command that runs."""

import typer

from counterpoint.cli.diagnose.all import everything
from counterpoint.cli.diagnose.behaviour import behaviour
from counterpoint.cli.diagnose.conflicts import conflicts
from counterpoint.cli.diagnose.damage import damage
from counterpoint.cli.diagnose.edits import edits
from counterpoint.cli.diagnose.routes import routes

app = typer.Typer(
    name="diagnose",
    help="Show where and why one domain hurts another, on any checkpoints: every number beside the level that chance "
    "or noise would give.",
    no_args_is_help=True,
)

app.command("all")(everything)
app.command("behaviour")(behaviour)
app.command("conflicts")(conflicts)
app.command("damage")(damage)
app.command("edits")(edits)
app.command("routes")(routes)
