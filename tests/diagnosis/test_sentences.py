"""Two sentences per pair of domains: what was found, how sure it is, and nothing beyond that."""

from dataclasses import replace

import pytest

from counterpoint.diagnosis.whole_run.sentences import (
    ConflictFacts,
    DamageFacts,
    OverlapFacts,
    PairFindings,
    pair_sentences,
)
from counterpoint.stats import Estimate

HURT = PairFindings(
    earlier="math",
    later="writing",
    change=Estimate(-0.09, -0.13, -0.05),
    verdict="fell",
    damage=DamageFacts(Estimate(0.2, 0.15, 0.25), 0.02, 0.16, "layers.2.mlp", 0.62, 0.2),
    conflict=ConflictFacts("after qa", -0.004, 0.025, 0, 10, 2, 1, ("layers.2.mlp", -0.21)),
    edits=OverlapFacts(0.15, 0.05, 1e-9),
    routes=OverlapFacts(0.06, 0.05, 0.3),
)


def test_what_is_beyond_noise_is_said_with_its_interval():
    outcome, mechanism = pair_sentences(HURT)
    assert outcome == (
        "math fell by 9.0 points [-13.0, -5.0] while writing was trained, beyond noise; the edit of writing raises "
        "math's surrogate loss by +0.2 [+0.15, +0.25] per token, of which its second-order expansion predicts +0.18 "
        "(+0.16 from curvature); 62% of the curvature's part lies in layers.2.mlp, which holds 20% of the edit."
    )
    assert mechanism == (
        "After qa, math's and writing's gradients are within noise of right angles as a whole (cosine -0.004, noise "
        "alone up to 0.025), and beyond noise in 2 of 10 modules, 1 of them opposed (most in layers.2.mlp, "
        "cosine -0.210); the neurons that both changed most overlap more than by chance (Jaccard 0.15, chance 0.05, "
        "p < 0.001), and the routes that both use overlap no more than by chance (Jaccard 0.06, chance 0.05, "
        "p = 0.300)."
    )


def test_within_noise_is_an_answer():
    quiet = replace(
        HURT,
        change=Estimate(-0.01, -0.05, 0.03),
        verdict="within noise",
        damage=replace(HURT.damage, measured=Estimate(0.01, -0.02, 0.04)),
        conflict=replace(HURT.conflict, beyond=0, opposed=0, worst=None),
    )
    outcome, mechanism = pair_sentences(quiet)
    assert outcome == (
        "math's score changed by -1.0 points [-5.0, +3.0] while writing was trained, within noise; the loss that the "
        "edit of writing adds to math's surrogate (+0.01 [-0.02, +0.04] per token) is within noise."
    )
    assert "within noise in each of 10 modules" in mechanism
    assert "layers" not in outcome + mechanism, "no module is named where nothing stands out"


def test_a_fall_within_the_corrected_interval_is_noise_even_if_the_plain_interval_excludes_zero():
    outcome, _ = pair_sentences(replace(HURT, change=Estimate(-0.04, -0.07, -0.01), verdict="within noise"))
    assert "was trained, within noise once all comparisons of the run are allowed for; " in outcome
    assert "fell" not in outcome


def test_what_cannot_be_told_says_why_once():
    unknown = replace(
        HURT,
        change="cannot be told: it was not evaluated after its stage.",
        verdict="cannot be told",
        damage="cannot be told: there is no checkpoint before writing.",
        conflict="no completion of math has an advantage.",
        edits="the checkpoint after qa is gone",
        routes="the model has no known MLP",
    )
    outcome, mechanism = pair_sentences(unknown)
    assert outcome == (
        "How math's score changed while writing was trained cannot be told: it was not evaluated after its stage; the "
        "damage done by the edit of writing cannot be told: there is no checkpoint before writing."
    )
    assert mechanism.count("cannot be told") == 3
    assert ".." not in outcome + mechanism


@pytest.mark.parametrize(
    ("first", "second", "said", "silent"),
    [
        (0.0, 0.6, "which its second-order expansion (+0.6) does not predict", "lies in"),
        (0.3, -0.1, "predicts +0.2 (-0.1 from curvature)", "lies in"),
        (-0.02, 0.2, "62% of the curvature's part lies in layers.2.mlp", "does not predict"),
    ],
)
def test_second_order_is_believed_only_where_it_fits(first, second, said, silent):
    outcome, _ = pair_sentences(replace(HURT, damage=replace(HURT.damage, first=first, second=second)))
    assert said in outcome
    assert silent not in outcome


def test_a_gain_is_called_a_gain():
    helped = replace(
        HURT,
        change=Estimate(0.1, 0.05, 0.15),
        verdict="rose",
        damage=DamageFacts(Estimate(-0.2, -0.3, -0.1), -0.25, 0.05),
    )
    outcome, _ = pair_sentences(helped)
    assert outcome.startswith("math rose by 10.0 points [+5.0, +15.0]")
    assert "the edit of writing lowers math's surrogate loss by -0.2" in outcome


@pytest.mark.parametrize(
    ("cosine", "verdict", "word"),
    [(-0.3, -1, "opposed"), (0.3, 1, "aligned"), (0.1, 0, "within noise of right angles")],
)
def test_gradients_are_named_by_their_verdict(cosine, verdict, word):
    _, mechanism = pair_sentences(replace(HURT, conflict=replace(HURT.conflict, cosine=cosine, verdict=verdict)))
    assert f"gradients are {word} as a whole" in mechanism


def test_domains_of_one_stage_have_gradients_and_routes_alone():
    outcome, mechanism = pair_sentences(replace(HURT, together=True))
    assert outcome == "math and writing were trained in one stage: what one did to the other cannot be told."
    assert "gradients are within noise" in mechanism
    assert "changed most" not in mechanism


def test_no_sentence_claims_a_cause():
    text = " ".join(pair_sentences(HURT)).lower()
    for word in ("because", "causes", "caused", "due to", "therefore", "proves"):
        assert word not in text


def test_behaviour_sentences_name_the_worst_of_each_domain(tmp_path):
    from counterpoint.diagnosis import behaviour
    from planted_runs import write_run

    planted = {"code": (0.2, 0.8, 0.8, 0.5), "math": (0.4, 0.4, 0.9, 0.9), "qa": (0.3, 0.3, 0.3, 0.45)}
    run = write_run(tmp_path / "run", planted)
    alone = write_run(tmp_path / "alone", {"qa": (0.3, 0.85)}, seed=1)
    texts = behaviour(run, {"qa": alone}).sentences
    assert texts[0].startswith("forgetting: code rose in its own stage and then changed by -")
    assert texts[0].endswith("after math and qa.")
    assert texts[1].startswith("math changed by ")
    assert texts[1].endswith("after qa, within noise.")
    assert texts[2].startswith("Rigidity of math cannot be told: ")
    assert texts[3].startswith("rigidity: qa after code and math gained -")
