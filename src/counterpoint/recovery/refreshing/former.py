"""What a damaged domain scored when it was good: evaluated on its checkpoint, read from its run, or simply given."""

from pathlib import Path

from counterpoint.config import Config, parse_config
from counterpoint.diagnosis.subject import model_of
from counterpoint.engine import Reporter, evaluate_model
from counterpoint.errors import CounterpointError, RunError
from counterpoint.runs.run import Run
from counterpoint.stats import Former


def former_score(
    config: Config,
    run: Path | None,
    domain: str,
    reference: str | None,
    number: float | None,
    reporter: Reporter | None = None,
) -> Former:
    """The score that a refresh of ``domain`` is to reach.

    ``number`` where it is given, else the score of ``reference`` on the held-out rows of ``config``, else that at the
    end of the domain's stage in ``run``.

    Raises:
        CounterpointError: none of the three says what the domain scored.
    """
    if number is not None:
        return Former.of_number(number)
    if reference is not None:
        (score,) = evaluate_model(_alone(config, domain, reference), reporter)
        return Former.of_scores(score.to_json()["scores"])
    if run is None:
        raise CounterpointError(
            f"What did {domain} score before it fell? Give --reference CHECKPOINT (the one after its own stage), "
            "--former SCORE, or the run that trained it as CONFIG."
        )
    scores = Run.open(run).former(domain)
    if scores is None:
        raise RunError(
            f"{run}: no stage that trained {domain} has ended with an evaluation, so its former score is not "
            "known. Give --reference CHECKPOINT or --former SCORE."
        )
    return Former.of_scores(scores)


def _alone(config: Config, domain: str, model: str) -> Config:
    """The configuration with one domain and another model, for an evaluation."""
    data = config.model_dump(mode="json")
    data |= {
        "model": model_of(config, model).model_dump(mode="json"),
        "domains": {domain: data["domains"][domain]},
        "strategy": "mixed",
        "recovery": {},
    }
    data["run"] |= {"samples": 0}
    data["model"]["path"] = str(Path(model).resolve()) if Path(model).exists() else model
    return parse_config(data, like=config)
