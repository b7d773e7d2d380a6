"""What the ranks of the distributed tests run; a module of its own, so that ranks can import it."""

from counterpoint.verification import CASES, CONTROLS, open_world, run_suite


def run_on_ranks(dtype, cases, controls):
    """The outcomes of the named cases and planted bugs by name, as this rank reports them."""
    with open_world("cpu", dtype) as world:
        report = run_suite(world, {name: CASES[name] for name in cases}, {name: CONTROLS[name] for name in controls})
    return {outcome.name: outcome for outcome in (*report.cases, *report.controls)}
