"""One sentence and one line per analysis for two domains: what was found, how sure it is, and nothing beyond that."""

import re
from dataclasses import replace

import pytest

from counterpoint.config import parse_config
from counterpoint.diagnosis import Damage, DamageOptions
from counterpoint.diagnosis._course import Course, Leg, Point
from counterpoint.diagnosis._damage_parts import ModulePart
from counterpoint.diagnosis._findings import ModuleConflict, PairConflict, PairOverlap, PartFindings
from counterpoint.diagnosis._parts import PartDone
from counterpoint.diagnosis.behaviour import behaviour
from counterpoint.diagnosis.summary import summarise
from counterpoint.runs.stages import Stage
from counterpoint.stats import Estimate
from planted_runs import write_run

FELL = {"math": (0.3, 0.9, 0.5), "writing": (0.3, 0.3, 0.8)}
CALM = {"math": (0.3, 0.9, 0.9), "writing": (0.3, 0.3, 0.8)}
ABOUT = {"domain": "math", "later": ["writing"], "first_step": 10, "last_step": 20}


def estimate(value, half=0.05):
    return Estimate(value, value - half, value + half)


def damage(measured=0.2, first=0.02, second=0.16, half=0.05, rows=(("layers.2.mlp", 0.1, 0.2), ("norm", 0.06, 0.7))):
    modules = tuple(ModulePart(name, estimate(0.0), estimate(value, 0.02), share, 0.1) for name, value, share in rows)
    terms = {"measured": estimate(measured, half), "first": estimate(first), "second": estimate(second)}
    return Damage("before", "after", "math", "writing", DamageOptions(), **terms, modules=modules)


def conflict(cosine=-0.1, verdict=-1, modules=((-0.15, -1), (0.02, 0), (0.2, 1))):
    rows = tuple(ModuleConflict(f"layers.{i}.mlp", value, 0.07, None, mark) for i, (value, mark) in enumerate(modules))
    return PartFindings((PairConflict("math", "writing", cosine, 0.072, verdict, rows),))


def overlap(first, second, p_value):
    return PairOverlap(first, second, 0.15, 0.05, p_value)


FOUND = {
    "damage": damage(),
    "conflicts-step-10": conflict(),
    "routes-step-10": PartFindings(overlaps=(overlap("writing", "math", 0.3),)),
    "edits": PartFindings(edits=({}, {}), overlaps=(overlap("0", "1", 1e-9),)),
}


@pytest.fixture
def summary_of(tmp_path):
    """The summary of a sequential run of two domains with these findings; None stands for a part that failed."""

    def build(planted=FELL, stages=(("math",), ("writing",)), **changed):
        found = FOUND | {name.replace("_", "-"): value for name, value in changed.items()}
        names = [name for stage in stages for name in stage]
        points = [Point(10 * i, f"step-{10 * i}", f"moment {i}", "x", tuple(names[:i])) for i in range(len(stages) + 1)]
        kinds = [Stage(i, names, 10 * i, 10 * i + 10) for i, names in enumerate(stages)]
        legs = tuple(Leg(stage, points[i], points[i + 1]) for i, stage in enumerate(kinds))
        config = parse_config({"domains": {name: {"source": "pocket"} for name in names}})
        course = Course("run", tmp_path, config, tmp_path, tuple(kinds), tuple(points), legs, None, "RECOVER IT")
        done = [
            PartDone(name, name.split("-")[0], ABOUT if name == "damage" else {},
                     "done" if value else "failed", 0.0, "" if value else "too few prompts.")
            for name, value in found.items()
        ]  # fmt: skip
        if planted:
            found["behaviour"] = behaviour(write_run(tmp_path / "run", planted))
        return summarise(course, done, {name: value for name, value in found.items() if value}, {}, 0.0)

    return build


def pair_of(summary):
    (pair,) = summary.pairs
    return pair, " ".join(pair.details)


def test_a_fall_is_said_with_its_interval_and_what_to_do(summary_of):
    summary = summary_of()
    pair, _ = pair_of(summary)
    loss = -100 * pair.change.change.value
    assert pair.sentence.startswith(f"math lost {loss:.1f} points [{-100 * pair.change.corrected.high:.1f}, ")
    assert pair.sentence.endswith("beyond noise. To get it back: RECOVER IT")
    assert pair.found == ("score", "damage", "conflict")
    assert pair.sentence in summary.sentences()


def test_every_analysis_has_one_line_with_its_number_and_its_level(summary_of):
    pair, text = pair_of(summary_of())
    assert len(pair.details) == 4
    for part in (
        "Damage: +0.2 loss per token [+0.15, +0.25], beyond noise",
        "predicts +0.18 (+0.16 by curvature)",
        "62% of curvature's part lies in layers.2.mlp, which holds 20% of the edit",
        "gradient cosine -0.100 (noise: up to 0.072)",
        "1 of 3 modules in conflict, most layers.0.mlp (-0.15)",
        "more than chance, Jaccard 0.15 (chance 0.05, p < 0.001)",
        "no more than chance, Jaccard 0.15 (chance 0.05, p = 0.3)",
    ):
        assert part in text
    assert pair.place == "62% in layers.2.mlp"


def test_the_table_marks_overlaps_beyond_chance(summary_of):
    row = next(table for table in summary_of().tables() if table.columns[0] == "pair").rows[0]
    assert list(row[3:]) == ["0.15* (0.05)", "0.15 (0.05)"]


def test_within_noise_has_an_interval_and_names_no_module(summary_of):
    quiet = conflict(0.01, 0, ((0.02, 0),))
    summary = summary_of(CALM, damage=damage(measured=0.01), conflicts_step_10=quiet)
    pair, text = pair_of(summary)
    assert pair.found == ()
    assert "within noise" in pair.sentence
    assert f"does not exclude a loss of {-100 * pair.change.corrected.low:.1f}" in pair.sentence
    assert "[-0.04, +0.06], within noise" in text
    assert "0 of 1 modules in conflict" in text
    assert "beyond noise" not in text + pair.sentence
    assert pair.sentence not in summary.sentences(), "a pair without a finding is a row of the table alone"


@pytest.mark.parametrize(
    ("first", "second", "said", "silent"),
    [
        (0.0, 0.6, "does not predict it (+0.6)", "lies in"),
        (0.3, -0.1, "predicts +0.2 (-0.1 by curvature)", "lies in"),
        (-0.02, 0.2, "62% of curvature's part lies in layers.2.mlp", "does not predict"),
    ],
)
def test_second_order_is_believed_only_where_it_fits(summary_of, first, second, said, silent):
    _, text = pair_of(summary_of(damage=damage(first=first, second=second)))
    assert said in text
    assert silent not in text


def test_the_damage_to_a_solved_domain_is_said_in_its_unit(summary_of):
    solved = replace(damage(), options=DamageOptions(surrogate="likelihood"))
    assert (
        "Damage: +0.2 nats per token (-log p of its completions, all of them right)"
        in pair_of(summary_of(damage=solved))[1]
    )


def test_no_module_is_named_where_none_is_sure(summary_of):
    pair, text = pair_of(summary_of(damage=damage(rows=(("norm", 0.01, 1.0),))))
    assert pair.place == ""
    assert "lies in" not in text


def test_what_is_missing_says_why_once(summary_of):
    summary = summary_of(None, damage=None, conflicts_step_10=None, edits=None, routes_step_10=None)
    pair, text = pair_of(summary)
    assert pair.damage is pair.conflict is pair.edits is pair.routes is pair.change is None
    assert set(pair.missing) == {"score", "damage", "conflict", "edits", "routes"}
    assert text.count("not measured (too few prompts).") == 4
    assert "change of score not measured" in pair.sentence
    assert ".." not in text + pair.sentence
    assert all(cell is None for cell in summary.tables()[0].rows[0][1:]), "a dash, never zero"
    assert summary.sentences()[-1] == "edits: not measured (too few prompts)."


def test_a_measurement_that_stopped_says_why(summary_of):
    _, text = pair_of(summary_of(damage=replace(damage(), second=None, stopped="Memory did not suffice.")))
    assert "Damage: not measured (Memory did not suffice)." in text


def test_domains_of_one_stage_have_gradients_and_routes_alone(summary_of):
    at_the_end = {"conflicts_step_10": conflict(), "routes_step_10": FOUND["routes-step-10"]}
    pair, text = pair_of(summary_of(None, (("math", "writing"),), **at_the_end))
    assert pair.together
    assert "trained in the same stage" in pair.sentence
    assert len(pair.details) == 2
    assert "Damage" not in text
    assert pair.found == ("conflict",)


def test_a_stage_that_changed_no_neuron_shares_none(summary_of):
    pair, text = pair_of(summary_of(edits=PartFindings(edits=FOUND["edits"].edits)))
    assert pair.edits is None
    assert "changed most: not measured (one of the two changed no MLP neuron" in text


def test_no_sentence_claims_a_cause(summary_of):
    text = " ".join(summary_of().sentences()).lower()
    assert not re.search(r"\b(because|causes?|caused|due to|therefore|proves?)\b", text)
