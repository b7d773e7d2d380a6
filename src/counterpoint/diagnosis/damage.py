"""What a later edit costs an earlier domain: first order, second order and Fisher beside the damage measured.

    found = damage("runs/seq", "runs/seq/checkpoints/step-80", "runs/seq/checkpoints/step-160", "math", other="code")
    found.measured.value          # rise of math's loss per completion token
    print(found)

theta_A is the checkpoint right after domain A's stage, d the later edit, L_A a surrogate loss of A on completions
sampled at theta_A:

    L_A(theta_A + d) - L_A(theta_A)  =  g.d  +  1/2 d'Hd  +  higher orders

Source: "A Local Perturbation Theory ..." (arXiv 2606.02398), section 5; the surrogate losses are ours.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from counterpoint.anatomy import Anatomy
from counterpoint.checkpoints import compare, open_checkpoint
from counterpoint.config import Config
from counterpoint.diagnosis import _damage_parts as parts
from counterpoint.diagnosis._curvature import Derivatives, along, check_deterministic, inner, losses
from counterpoint.diagnosis._damage_parts import ModulePart, Modules, Reach, RoutePart, ScalePoint, Subspace, per_unit
from counterpoint.diagnosis._edit_vector import edit_between, open_at
from counterpoint.diagnosis._surrogates import (
    BASELINES,
    MIN_PROMPTS,
    SURROGATES,
    TextLoss,
    fisher_along,
    is_solved,
    text_loss,
    with_baseline,
)
from counterpoint.diagnosis.rollouts import Rollouts
from counterpoint.diagnosis.routes import shared_neurons
from counterpoint.diagnosis.subject import Subject, completions_for, config_of, wanted_domains
from counterpoint.errors import CounterpointError, nearest
from counterpoint.models import is_out_of_memory
from counterpoint.progress import Progress, silent
from counterpoint.results import Result
from counterpoint.stats import Estimate
from counterpoint.tables import Cell, Table

MOST_MODULES = 12
"""Modules that a table lists; ``to_dict`` has all."""


@dataclass(frozen=True)
class DamageOptions:
    """What is measured and how much of it.

    ``surrogate`` is ``policy`` or ``likelihood``. ``baseline`` says what a reward is compared with: ``domain``, so that
    prompts whose completions are all right count, or ``prompt``, as in GRPO. Where all completions of the domain are
    right, only their likelihood can be lost: ``domain`` then measures the surrogate ``likelihood``. ``prompts`` and
    ``samples`` say how many completions are sampled (of a file the first ``samples`` of each prompt count),
    ``batch_size`` how many are in memory at once. ``lanczos`` is the number of Hessian products for the strongest
    eigen-directions (0 for none),
    ``top`` the directions whose share is measured. ``fraction`` of the neurons make a route.
    ``draws`` is the number of random edits and random sets of neurons.
    ``scales`` are multiples of the edit, ``tolerance`` the relative error up to which second order predicts.
    """

    surrogate: str = "policy"
    baseline: str = "domain"
    prompts: int = 64
    samples: int = 8
    batch_size: int = 8
    lanczos: int = 0
    top: int = 8
    fraction: float = 0.1
    draws: int = 5
    scales: tuple[float, ...] = (0.25, 0.5, 1.0)
    tolerance: float = 0.2
    seed: int = 0

    def check(self, sampled: bool = True) -> None:
        """Refuses what cannot be measured, before any weight is read; ``sampled`` says that ``prompts`` will be."""
        if self.surrogate not in SURROGATES:
            raise CounterpointError(f"surrogate: there is no {self.surrogate!r}; {nearest(self.surrogate, SURROGATES)}")
        if self.baseline not in BASELINES:
            raise CounterpointError(f"baseline: there is no {self.baseline!r}; {nearest(self.baseline, BASELINES)}")
        for key in ("prompts", "samples", "batch_size", "top", "draws"):
            if getattr(self, key) < 1:
                raise CounterpointError(f"{key} must be at least 1; found {getattr(self, key)}.")
        if sampled and self.prompts < MIN_PROMPTS:
            raise CounterpointError(
                f"prompts={self.prompts} is too few: an interval needs at least {MIN_PROMPTS} prompts with a signal."
            )
        if self.samples < 2 and self.baseline == "prompt":
            raise CounterpointError(
                f"samples={self.samples} is too few: rewards of one prompt are compared. Take at least 2, or compare "
                "with the domain: baseline='domain'."
            )
        if not 0 < self.fraction <= 1:
            raise CounterpointError(f"fraction must be above 0 and at most 1; found {self.fraction}. Try 0.1.")
        if self.lanczos < 0:
            raise CounterpointError(f"lanczos must not be negative; found {self.lanczos}. 0 leaves directions out.")
        if not self.scales or min(self.scales) <= 0 or not self.tolerance > 0:
            raise CounterpointError(
                f"scales and tolerance must be positive; found {self.scales} and {self.tolerance}. Give for example "
                "scales=(0.5, 1.0), tolerance=0.2."
            )


@dataclass(frozen=True)
class Damage(Result):
    """What an edit does to a domain's loss, per completion token; positive numbers are damage.

    ``predicted`` is ``first + second``; ``second`` is ``1/2 d'Hd``, ``fisher`` ``1/2 d'Fd`` in nats per token.
    ``difference`` is ``measured - predicted`` on the same prompts; ``range`` has it at multiples of the edit.
    ``random_edit`` is the damage measured for random edits as large in every module (mean, lowest, highest). What was
    not asked for, or did not fit in memory, is None; ``stopped`` then says why.

    Intervals are 95 % over resampled prompts, of this domain and edit alone: they are **not** corrected for the number
    of pairs that a diagnosis looks at, so of 20 pairs without damage one is expected to lie outside.
    """

    kind: ClassVar[str] = "damage"

    before: str
    after: str
    domain: str
    other: str | None
    options: DamageOptions
    prompts: int = 0
    informative: int = 0
    completions: int = 0
    tokens: int = 0
    relative_edit_norm: float = 0.0
    first: Estimate | None = None
    second: Estimate | None = None
    predicted: Estimate | None = None
    fisher: Estimate | None = None
    measured: Estimate | None = None
    difference: Estimate | None = None
    random_edit: Estimate | None = None
    modules: tuple[ModulePart, ...] = ()
    route: RoutePart | None = None
    subspace: Subspace | None = None
    range: Reach | None = None
    stopped: str | None = None

    @property
    def is_whole(self) -> bool:
        """Whether all terms are there and finite: nothing stopped the measurement."""
        terms = (self.measured, self.first, self.second)
        return all(term and math.isfinite(term.value + term.low + term.high) for term in terms)

    @property
    def is_predicted(self) -> bool:
        """Whether second order errs by at most ``tolerance`` of the largest term, for the whole edit."""
        terms = [term.value for term in (self.measured, self.first, self.second) if term]
        sizes = [abs(term) for term in terms]
        return len(terms) == 3 and abs(terms[0] - terms[1] - terms[2]) <= self.options.tolerance * max(sizes)

    @property
    def place(self) -> tuple[str, float, float] | None:
        """The module with most of the harm that curvature does, its share of it, and its share of the edit.

        None where no module's own interval lies above zero.
        """
        sure = [row for row in self.modules if row.second.low > 0]
        if not sure:
            return None
        top = max(sure, key=lambda row: row.second.value)
        return top.module, top.second.value / sum(max(0.0, row.second.value) for row in self.modules), top.edit_share

    @property
    def verdict(self) -> str:
        """Whether the edit does damage, and up to which size the quadratic approximation predicts it."""
        if self.measured is None:
            return "Nothing was measured."
        found, domain = self.measured, self.domain
        if found.low <= 0 <= found.high:
            outcome = f"Damage to {domain} is within noise"
        else:
            outcome = f"The update {'damages' if found.value > 0 else 'helps'} {domain}"
        sentences = [f"{outcome}: {found.value:+.3g} [{found.low:+.3g}, {found.high:+.3g}] per token."]
        if self.range is not None:
            (point,) = (point for point in self.range.points if point.scale == 1)
            noise = ", within noise" if point.within_noise else ""
            sentences.append(
                f"The quadratic approximation predicts {point.predicted.value:+.3g} ({100 * point.error:.0f} % "
                f"off{noise}). {_reach(self.range)}"
            )
        return " ".join(sentences)

    def tables(self) -> list[Table]:
        """The terms, then modules, shared neurons and multiples of the edit, where they were measured."""
        found = [_terms(self)]
        if self.modules:
            found.append(_module_rows(self.modules))
        if self.route:
            found.append(_route_rows(self.domain, self.route))
        if self.range:
            found.append(_scale_rows(self.range.points))
        return found

    def sentences(self) -> list[str]:
        """The verdict; what the strongest directions carry, where it was measured; why it stopped."""
        found = [self.verdict]
        if self.subspace:
            found.append(_subspace_sentence(self.subspace))
        return [*found, self.stopped] if self.stopped else found


def damage(
    config: str | Path | Config,
    before: str | Path,
    after: str | Path,
    domain: str,
    *,
    other: str | None = None,
    options: DamageOptions | None = None,
    completions: Path | None = None,
    on_progress: Progress = silent,
) -> Damage:
    """The damage that the edit from ``before`` to ``after`` does to ``domain``, predicted and measured.

    Args:
        config: configuration or run directory that defines the domains.
        before: the checkpoint right after the domain's own stage, where completions are sampled.
        after: a later checkpoint of the same architecture.
        domain: the domain that may have suffered.
        other: the later domain; with it the damage is cut into that on the neurons both use and the rest.
        options: what is measured and how much of it.
        completions: a file that an analysis saved, instead of sampling; its completions must come from ``before``.
        on_progress: called with what is being done, steps done and in total.

    Raises:
        ConfigError: a bad configuration or an unknown domain.
        ModelError: checkpoints that cannot be compared, or are equal.
        CounterpointError: too few prompts with a signal, or impossible options.
        UnsupportedError: a loss that is not deterministic.
    """
    options = options or DamageOptions()
    options.check(sampled=completions is None)
    config = config if isinstance(config, Config) else config_of(config)
    names = [domain] if other in (None, domain) else [domain, str(other)]
    wanted_domains(config, names)
    pair = compare(open_checkpoint(before), open_checkpoint(after))
    subject = open_at(config, before, names)
    edit = edit_between(pair, subject.model)
    rollouts = completions_for(
        subject,
        file=completions,
        prompts=options.prompts,
        samples=options.samples,
        seed=options.seed,
        on_progress=on_progress,
    )
    few = {name: own.first(options.samples) for name, own in rollouts.items()}
    if options.baseline == "domain" and is_solved(few[domain]):
        options = replace(options, surrogate="likelihood")
    own = with_baseline(few[domain], options.baseline)
    work = _Measurement(
        subject, edit, own, options, on_progress, Damage(str(before), str(after), domain, other, options)
    )
    return work.run(few.get(other) if other else None)


@dataclass
class _Measurement:
    """One measurement in parts of rising cost; what is done before memory runs out stays in ``result``."""

    subject: Subject
    edit: dict[str, Tensor]
    rollouts: Rollouts
    options: DamageOptions
    on_progress: Progress
    result: Damage
    text: TextLoss = field(init=False)
    modules: Modules = field(init=False)
    whole: Derivatives = field(init=False)
    measured: dict[float, Tensor] = field(init=False)

    def run(self, other: Rollouts | None) -> Damage:
        """Everything that was asked for, until memory does not suffice."""
        work: list[tuple[str, bool, Callable[[], None]]] = [
            ("the measured damage", True, self._measure),
            ("Hessian-vector products", True, self._differentiate),
            ("the Fisher term", True, self._fisher),
            ("Hessian-vector products on the shared route", other is not None, lambda: self._cut_route(other)),
            ("the strongest directions", self.options.lanczos > 0, self._subspace),
        ]
        self._open()
        for what, wanted, measure in work:
            try:
                if wanted:
                    measure()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._note(stopped=self._out_of_memory(what) + " What was measured before is kept.")
                break
        return self.result

    def _note(self, **found: Any) -> None:
        self.result = replace(self.result, **found)

    def _open(self) -> None:
        options, model = self.options, self.subject.model
        try:
            self.text = text_loss(
                model, self.rollouts, options.surrogate, batch_size=options.batch_size, on_progress=self.on_progress
            )
            check_deterministic(self.text.loss)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise CounterpointError(self._out_of_memory("one batch of completions")) from error
        params = self.text.loss.params
        self.modules = Anatomy.of(model).by_module(params)
        norm = float(inner(self.edit, self.edit)) ** 0.5
        self._note(
            prompts=len(self.text.tokens_P),
            informative=self.text.informative,
            completions=len(self.rollouts),
            tokens=int(self.text.tokens_P.sum()),
            relative_edit_norm=norm / float(inner(params, params)) ** 0.5,
        )

    def _measure(self) -> None:
        loss, options = self.text.loss, self.options
        before_P = losses(loss)
        self.measured = parts.damage_at(loss, self.edit, sorted({*options.scales, 1.0}), before_P, self.on_progress)
        random = parts.random_edit_damage(
            loss, self.edit, self.modules, before_P, options.draws, options.seed, self.on_progress
        )
        self._note(measured=per_unit(self.measured[1.0], loss.units_P), random_edit=random)

    def _differentiate(self) -> None:
        loss, edit = self.text.loss, self.edit
        reduce = parts.by_module(edit, self.modules)
        self.whole = along(loss, {"edit": edit}, reduce, what="Hessian products", on_progress=self.on_progress)
        first_P, second_P = self.whole.first["edit"].sum(1), 0.5 * self.whole.second["edit"].sum(1)
        self._note(
            first=per_unit(first_P, loss.units_P),
            second=per_unit(second_P, loss.units_P),
            predicted=per_unit(first_P + second_P, loss.units_P),
            difference=per_unit(self.measured[1.0] - first_P - second_P, loss.units_P),
            modules=parts.module_parts(self.whole, edit, loss, self.modules),
            range=parts.reach_of(self.measured, first_P, second_P, loss.units_P, self.options.tolerance),
        )

    def _fisher(self) -> None:
        self._note(fisher=per_unit(0.5 * fisher_along(self.text, self.edit, self.on_progress), self.text.tokens_P))

    def _cut_route(self, other: Rollouts | None) -> None:
        assert other is not None
        options = self.options
        shared = shared_neurons(self.subject, (self.rollouts, other), options.fraction, options.batch_size)
        self._note(
            route=parts.route_part(
                self.text.loss,
                self.edit,
                shared,
                self.whole,
                other.domain,
                Anatomy.of(self.subject.model),
                draws=options.draws,
                seed=options.seed,
                on_progress=self.on_progress,
            )
        )

    def _subspace(self) -> None:
        options, loss = self.options, self.text.loss
        self._note(
            subspace=parts.subspace_of(
                replace(loss, params={name: loss.params[name] for names in self.modules.values() for name in names}),
                self.edit,
                iterations=options.lanczos,
                top=min(options.top, options.lanczos),
                seed=options.seed,
                on_progress=self.on_progress,
            )
        )

    def _out_of_memory(self, what: str) -> str:
        if self.options.batch_size > 1:
            remedy = f"Lower batch_size (now {self.options.batch_size} completions at once)."
        else:
            remedy = "A batch is one completion already: shorten completions (training.max_completion_length)."
        return f"Memory did not suffice for {what}. {remedy}"


_FORMS = dict.fromkeys(("value", "g.d", "½ d'Hd", "predicted", "measured"), "+.3g")
_FORMS |= dict.fromkeys(("error", "edit", "weights"), ".0%")


def _terms(found: Damage) -> Table:
    title = (
        f"Damage to {found.domain}, {found.options.surrogate} loss per token, "
        f"{found.informative} of {found.prompts} prompts have a signal"
    )
    values = {
        "first order g.d": found.first,
        "second order ½ d'Hd": found.second,
        "first + second": found.predicted,
        "measured": found.measured,
        "measured - predicted": found.difference,
        "Fisher ½ d'Fd (nats)": found.fisher,
        f"random edits, measured (lowest, highest of {found.options.draws})": found.random_edit,
    }
    rows: tuple[tuple[Cell, ...], ...] = tuple(item for item in values.items() if item[1] is not None)
    note = "95 % intervals over prompts, of this pair alone: not corrected for other pairs"
    return Table(title, ("term", "value"), rows, _FORMS, note)


def _module_rows(modules: tuple[ModulePart, ...]) -> Table:
    rows = tuple((row.module, row.first.value, row.second, row.edit_share, row.size_share) for row in modules)
    hidden = len(rows) - MOST_MODULES
    note = "edit: share of |d|²; weights: share of all weights" + (
        f"; {hidden} smaller modules are left out" if hidden > 0 else ""
    )
    columns = ("module", "g.d", "½ d'Hd", "edit", "weights")
    return Table("By module (rows add up)", columns, rows[:MOST_MODULES], _FORMS, note)


def _route_rows(domain: str, route: RoutePart) -> Table:
    title = (
        f"Neurons on the routes of both {domain} and {route.other}: {route.neurons} of {route.all_neurons}, "
        f"{route.edit_share:.1%} of |d|²"
    )
    rows = (
        ("shared neurons", route.first_on.value, route.second_on),
        ("all else", route.first_off.value, route.second_off),
        ("between the two", None, route.cross),
        ("random neurons", route.random_first.value, route.random_second),
    )
    note = f"random neurons: as many in each layer; mean, lowest and highest of {route.draws} sets"
    return Table(title, ("part", "g.d", "½ d'Hd"), rows, _FORMS, note)


def _scale_rows(points: tuple[ScalePoint, ...]) -> Table:
    rows = tuple(
        (point.scale, point.predicted.value, point.measured, point.error, "within noise" if point.within_noise else "")
        for point in points
    )
    note = "error: the difference over the largest of measured, first and second order"
    return Table("Along the edit", ("times d", "predicted", "measured", "error", ""), rows, _FORMS, note)


def _subspace_sentence(found: Subspace) -> str:
    share, other = found.share, found.other_half_share
    return (
        f"The {len(found.directions)} strongest eigen-directions hold {found.edit_share:.2g} of |d|² and carry "
        f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}] of the second order; found on half of the prompts, "
        f"they carry {other.value:.0%} of the other half's. Random directions carry "
        f"{found.random_share:.2g} on average."
    )


def _reach(found: Reach) -> str:
    if not found.largest_scale:
        return f"It is not accurate even at {found.points[0].scale:g} times the update."
    words = {0.25: "a quarter of the update", 0.5: "half the update", 1.0: "the whole update"}
    largest = found.largest_scale
    return f"It is accurate up to {words.get(largest, f'{largest:g} times the update')}."
