"""All figures of the page on a run."""

from typing import Any

from counterpoint.report._diagnosis_figures import diagnosis_figures
from counterpoint.report._figures import Figure, comparison_figure, curve_figure, history_figure, with_reference
from counterpoint.report._heat_maps import overview_figure, steps_figure
from counterpoint.report._layer_map import layer_figure
from counterpoint.report._overview_figure import overview_picture
from counterpoint.report._recovery_figures import recovery_figures


def run_figures(content: dict[str, Any]) -> dict[str, Figure]:
    """All figures of the page by their id; a figure without data is left out."""
    stages = content["run"]["stages"]
    found: dict[str, Figure] = {}
    picture = overview_picture(content["run"], content["evaluation"]["rows"])
    if picture:
        found["overview"] = picture
    if content["comparison"]:
        found["comparison"] = comparison_figure(content["comparison"]["rows"], content["comparison"]["runs"])
    if max((len(domain["scores"]) for domain in content["evaluation"]["over_time"]), default=0) > 2:
        found["history"] = history_figure(content["evaluation"]["over_time"], stages)
    if content["diagnosis"]:
        found |= diagnosis_figures(content["diagnosis"])
    if content["recovery"]:
        found |= recovery_figures(content["recovery"])
    for panel in content["curves"]:
        found[f"curve-{panel['metric']}"] = curve_figure(panel["curves"], stages)
    return found | _surgery_figures(content, stages)


def _surgery_figures(content: dict[str, Any], stages: list[dict[str, Any]]) -> dict[str, Figure]:
    surgery, cosines = content["surgery"], content["cosines"]
    found: dict[str, Figure] = {}
    if surgery["conflict_rate"]["step"]:
        found["conflict-rate"] = with_reference(curve_figure([surgery["conflict_rate"]], stages, "p"), 0.5)
    if surgery["removed"]["step"]:
        found["removed"] = curve_figure([surgery["removed"]], stages, "p")
    if surgery["cosine"]:
        found["cosine"] = with_reference(curve_figure(surgery["cosine"], stages, "p", legend=True), 0.0)
    if cosines:
        found["module-overview"] = overview_figure(cosines)
        found["module-steps"] = steps_figure(cosines)
        by_layer = layer_figure(cosines)
        if by_layer:
            found["module-time"] = by_layer
    return found
