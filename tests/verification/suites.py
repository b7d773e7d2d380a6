"""What the ranks of the distributed tests run; a module of its own, so that ranks can import it."""

from counterpoint.verification import CASES, CONTROLS, open_world, run_suite


def run_on_ranks(names_by_dtype):
    """The outcomes of the named cases and planted bugs by dtype and name, as this rank reports them."""
    outcomes = {}
    for dtype, names in names_by_dtype.items():
        with open_world("cpu", dtype) as world:
            cases = {name: CASES[name] for name in names if name in CASES}
            report = run_suite(world, cases, {name: CONTROLS[name] for name in names if name in CONTROLS})
        outcomes |= {(dtype, outcome.name): outcome for outcome in (*report.cases, *report.controls)}
    return outcomes
