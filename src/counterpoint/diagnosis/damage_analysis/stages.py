"""One measurement of damage in stages of rising cost: what is done before memory runs out is kept."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from counterpoint.anatomy import Anatomy
from counterpoint.config import Config
from counterpoint.diagnosis.damage_analysis.curvature import along, check_deterministic, displaced, inner
from counterpoint.diagnosis.damage_analysis.loss import TextLoss, logit_curvature, text_loss
from counterpoint.diagnosis.damage_analysis.parts import (
    block_forms,
    by_module,
    module_parts,
    modules_of,
    per_unit,
    route_part,
    span_of,
)
from counterpoint.diagnosis.damage_analysis.range import damage_at, random_edit_damage, range_of
from counterpoint.diagnosis.damage_analysis.results import Damage, DamageOptions, RewardDrop
from counterpoint.diagnosis.damage_analysis.spectrum import spectrum_of
from counterpoint.diagnosis.rollouts import Rollouts
from counterpoint.diagnosis.route_analysis.capture import activity_of, sites_of
from counterpoint.diagnosis.route_analysis.overlap import Choice
from counterpoint.diagnosis.subject import Subject
from counterpoint.errors import CounterpointError
from counterpoint.evaluation import EvaluationPlan, evaluate
from counterpoint.models import is_out_of_memory
from counterpoint.progress import Progress
from counterpoint.stats import Estimate, difference_interval


@dataclass
class Measurement:
    """One measurement in stages of rising cost; what is done before memory runs out stays in ``result``."""

    subject: Subject
    edit: dict[str, Tensor]
    rollouts: Rollouts
    options: DamageOptions
    on_progress: Progress
    result: Damage
    kept: dict[str, Any] = field(default_factory=dict)

    def run(self, other: Rollouts | None, measure_reward: bool) -> None:
        """Every stage that was asked for, until memory does not suffice."""
        stages: list[tuple[str, Callable[[], None]]] = [
            ("the measured damage", self._measured),
            ("Hessian-vector products", self._derivatives),
            ("the Fisher term", self._logits),
        ]
        if measure_reward:
            stages.append(("the evaluation", self._reward))
        if other is not None:
            stages.append(("Hessian-vector products on the shared route", lambda: self._route(other)))
        if self.options.blocks:
            stages.append(("Hessian-vector products of single modules", self._blocks))
        if self.options.lanczos:
            stages.append(("the spectrum", self._spectrum))
        self._open()
        for what, stage in stages:
            try:
                stage()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._note(stopped=self._out_of_memory(what))
                return

    def _note(self, **found: Any) -> None:
        self.result = replace(self.result, **found)

    def _open(self) -> None:
        options = self.options
        try:
            text = text_loss(
                self.subject.model,
                self.rollouts,
                options.surrogate,
                batch_size=options.batch_size,
                on_progress=self.on_progress,
            )
            check_deterministic(text.loss)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise CounterpointError(self._out_of_memory("one batch of completions")) from error
        norm = float(inner(self.edit, self.edit)) ** 0.5
        anatomy = Anatomy.of(self.subject.model)
        self.kept |= {"text": text, "anatomy": anatomy, "modules": modules_of(text.loss.params, anatomy)}
        self._note(
            prompts=len(text.tokens_P),
            informative=text.num_informative,
            completions=len(self.rollouts),
            tokens=int(text.tokens_P.sum()),
            edit_norm=norm,
            relative_edit_norm=norm / float(inner(text.loss.params, text.loss.params)) ** 0.5,
        )

    @property
    def _text(self) -> TextLoss:
        return self.kept["text"]

    def _measured(self) -> None:
        loss, options = self._text.loss, self.options
        scales = sorted({*options.scales, 1.0})
        self.kept["measured"] = damage_at(loss, self.edit, scales, on_progress=self.on_progress)
        self._note(measured=per_unit(self.kept["measured"][1.0], loss.units_P))
        modules = self.kept["modules"]
        self._note(
            random_edit=random_edit_damage(loss, self.edit, modules, options.draws, options.seed, self.on_progress)
        )

    def _derivatives(self) -> None:
        loss, modules = self._text.loss, self.kept["modules"]
        whole = along(
            loss,
            {"edit": self.edit},
            by_module(self.edit, modules),
            keep=frozenset(["edit"]),
            what="Hessian products",
            on_progress=self.on_progress,
        )
        first_P, second_P = whole.first["edit"].sum(1), 0.5 * whole.second["edit"].sum(1)
        measured_P = self.kept["measured"][1.0]
        self.kept["whole"] = whole
        self._note(
            first=per_unit(first_P, loss.units_P),
            second=per_unit(second_P, loss.units_P),
            predicted=per_unit(first_P + second_P, loss.units_P),
            difference=per_unit(measured_P - first_P - second_P, loss.units_P),
            modules=module_parts(whole, None, self.edit, loss, modules),
            range=range_of(self.kept["measured"], first_P, second_P, loss.units_P, self.options.tolerance),
        )

    def _logits(self) -> None:
        text = self._text
        found = logit_curvature(text, self.edit, self.on_progress)
        self._note(
            gauss_newton=per_unit(0.5 * found.gauss_newton_P, text.loss.units_P),
            fisher=per_unit(0.5 * found.fisher_P, text.tokens_P),
        )

    def _reward(self) -> None:
        plan = sampled_plan(self.subject.config)
        domain = self.subject.domains[self.rollouts.domain]
        model, tokenizer = self.subject.model, self.subject.tokenizer
        report = _renamed("evaluate before", self.on_progress)
        (before,) = evaluate(model, tokenizer, [domain], plan, report)
        with displaced(self._text.loss.params, self.edit):
            (after,) = evaluate(model, tokenizer, [domain], plan, _renamed("evaluate after", self.on_progress))
        change = difference_interval(before.scores, after.scores)
        self._note(
            reward=RewardDrop(
                Estimate(before.mean, before.low, before.high),
                Estimate(after.mean, after.low, after.high),
                change,
                sum(None not in pair for pair in zip(before.scores, after.scores, strict=True)),
            )
        )

    def _route(self, other: Rollouts) -> None:
        shared = shared_neurons(self.subject, (self.rollouts, other), self.options.fraction, self.options.batch_size)
        options = self.options
        self._note(
            route=route_part(
                self._text.loss,
                self.edit,
                shared,
                self.kept["whole"],
                other.domain,
                self.kept["anatomy"],
                draws=options.draws,
                seed=options.seed,
                on_progress=self.on_progress,
            )
        )

    def _blocks(self) -> None:
        loss, modules = self._text.loss, self.kept["modules"]
        blocks_PMM = block_forms(loss, self.edit, modules, self.on_progress)
        self._note(
            span=span_of(blocks_PMM, self.edit, loss, modules),
            modules=module_parts(self.kept["whole"], blocks_PMM, self.edit, loss, modules),
        )

    def _spectrum(self) -> None:
        self._note(
            spectrum=spectrum_of(
                self._text.loss,
                self.edit,
                self.kept["whole"].products["edit"],
                self.kept["modules"],
                iterations=self.options.lanczos,
                top=min(self.options.top, self.options.lanczos),
                seed=self.options.seed,
                on_progress=self.on_progress,
            )
        )

    def _out_of_memory(self, what: str) -> str:
        if what == "the spectrum":
            remedy = f"Lower --lanczos (now {self.options.lanczos}): it keeps that many vectors of the model's size."
        elif self.options.batch_size > 1:
            remedy = f"Lower --batch-size (now {self.options.batch_size} completions at once)."
        else:
            remedy = "A batch is one completion already: shorten completions (training.max_completion_length)."
        return f"Memory did not suffice for {what}. {remedy} What was measured before is kept."


def shared_neurons(
    subject: Subject, rollouts: tuple[Rollouts, Rollouts], fraction: float, batch_size: int
) -> Mapping[int, Tensor]:
    """The neurons that are on the routes of both domains, by layer: the top ``fraction`` of each at this model."""
    sites = sites_of(subject.model)
    choice = Choice(sites.neuron_layers_N)
    pad_id = subject.tokenizer.pad_token_id
    routes = [
        choice.top(
            activity_of(subject.model, sites, part, pad_id=pad_id, batch_size=batch_size).mean("neuron"), fraction
        )
        for part in rollouts
    ]
    shared_N = routes[0] & routes[1]
    layers = sites.neuron_layers_N
    return {int(layer): shared_N[layers == layer] for layer in torch.unique(layers)}


def sampled_plan(config: Config) -> EvaluationPlan:
    """Sampled evaluation as in the configuration, without greedy decoding."""
    plan = EvaluationPlan.of_config(config, config.training.get("max_completion_length"))
    return replace(plan, greedy=False, examples=0)


def _renamed(what: str, on_progress: Progress) -> Progress:
    return lambda domain, done, total: on_progress(f"{what}: {domain}", done, total)
