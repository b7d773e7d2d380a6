"""What a later edit costs an earlier domain: first order, second order and Fisher beside the damage measured.

theta_A is the checkpoint right after domain A's stage, d the later edit, L_A a surrogate loss of A on completions
sampled at theta_A:

    L_A(theta_A + d) - L_A(theta_A)  =  g.d  +  1/2 d'Hd  +  higher orders

Source: "A Local Perturbation Theory ..." (arXiv 2606.02398), section 5; the surrogate losses are ours.
"""

from dataclasses import replace
from pathlib import Path

from counterpoint.config import Config
from counterpoint.diagnosis.damage_analysis.edit import check_pair, edit_between, open_at
from counterpoint.diagnosis.damage_analysis.loss import with_baseline
from counterpoint.diagnosis.damage_analysis.results import Damage, DamageOptions, check_options
from counterpoint.diagnosis.damage_analysis.stages import Measurement
from counterpoint.diagnosis.damage_analysis.verdict import verdict_of
from counterpoint.diagnosis.subject import completions_for, config_of, wanted_domains
from counterpoint.progress import Progress, silent


def damage(
    base: str | Path,
    after: str | Path,
    domain: str,
    config: str | Path | Config,
    *,
    other: str | None = None,
    options: DamageOptions | None = None,
    completions: Path | None = None,
    save: Path | None = None,
    held_out: bool = False,
    measure_reward: bool = False,
    on_progress: Progress = silent,
) -> Damage:
    """The damage that the edit from ``base`` to ``after`` does to ``domain``, predicted and measured.

    Args:
        base: the checkpoint right after the domain's own stage, where completions are sampled.
        after: a later checkpoint of the same architecture.
        domain: the domain that may have suffered.
        config: configuration or run directory that defines the domains.
        other: the later domain; with it the damage is cut into that on the neurons both use and the rest.
        options: what is measured and how much of it.
        completions: a file that an analysis saved, instead of sampling; its completions must come from ``base``.
        save: where sampled completions are written.
        held_out: sample on held-out rows.
        measure_reward: also sample both checkpoints on the held-out rows and compare their rewards.
        on_progress: called with what is being done, steps done and in total.

    Raises:
        ConfigError: a bad configuration or an unknown domain.
        ModelError: checkpoints that cannot be compared, or are equal.
        CounterpointError: too few prompts with a signal, or impossible options.
        UnsupportedError: a loss that is not deterministic.
    """
    options = options or DamageOptions()
    check_options(options, sampled=completions is None)
    config = config if isinstance(config, Config) else config_of(config)
    names = [domain] if other in (None, domain) else [domain, str(other)]
    wanted_domains(config, names)
    check_pair(base, after)
    subject = open_at(config, base, names)
    edit = edit_between(base, after, subject.model)
    rollouts = completions_for(
        subject,
        file=completions,
        prompts=options.prompts,
        samples=options.samples,
        seed=options.seed,
        at_least=2,
        held_out=held_out,
        save=save,
        on_progress=on_progress,
    )
    start = Damage(str(base), str(after), domain, other, options)
    own = with_baseline(rollouts[domain], options.baseline)
    work = Measurement(subject, edit, own, options, on_progress, start)
    work.run(rollouts.get(other) if other else None, measure_reward)
    return replace(work.result, verdict=verdict_of(work.result))
