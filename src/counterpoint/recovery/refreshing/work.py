"""One refresh at work: its run, what is measured at its checkpoints, and its result."""

import time
from pathlib import Path

from counterpoint.config import Config
from counterpoint.diagnosis.domains_of_config import Progress
from counterpoint.diagnosis.statistics import Estimate
from counterpoint.engine import Interrupted, Reporter, resume, train
from counterpoint.engine.prepare import grpo_config
from counterpoint.engine.stages import RefreshPlan
from counterpoint.errors import CounterpointError
from counterpoint.launch import Launch, rank_of_environment
from counterpoint.recovery.refreshing import outcome as reading
from counterpoint.recovery.refreshing.distances import Distances
from counterpoint.recovery.refreshing.results import Contraction, Refresh, RefreshOptions
from counterpoint.recovery.refreshing.route import Neurons, curvature_on, route_of
from counterpoint.recovery.results import write_result
from counterpoint.runs import RunDirectory


class Work:
    """A refresh in ``out`` from where it stands to its result."""

    def __init__(
        self, out: Path, config: Config, plan: RefreshPlan, reporter: Reporter | None, on_progress: Progress
    ) -> None:
        self.out, self.config, self.plan = out, config, plan
        self.reporter, self.on_progress = reporter, on_progress
        fields = dict(plan.options)
        self.model, self.reference, self.other = (fields.pop(key) for key in ("model", "reference", "other"))
        self.domain = fields.pop("domain")
        self.options = RefreshOptions(**{**fields, "protect": tuple(fields["protect"])})
        self.notes: list[str] = []
        self.began = time.perf_counter()

    def run(self, *, start: bool) -> Refresh:
        """Trains, or goes on, and writes the result.

        Raises:
            Interrupted: the user stopped it; the result so far is written.
        """
        try:
            if start:
                train(self.config, self.out.name, self.reporter, refresh=self.plan, on_checkpoint=self._on_checkpoint)
            else:
                resume(self.out, self.reporter, on_checkpoint=self._on_checkpoint)
        except Interrupted:
            if not rank_of_environment() and 0 in reading.read_looks(RunDirectory(self.out)):
                self._write(None)
            raise
        Launch.join().wait()
        return self._write(None if rank_of_environment() else self._contraction())

    @property
    def _distances(self) -> Distances | None:
        if not self.options.contraction or self.reference is None:
            return None
        return Distances(self.out / "recovery" / "distances.safetensors", self.reference)

    def _on_checkpoint(self, step: int, folder: Path) -> None:
        if measured := self._distances:
            measured.add(step, folder)

    def _contraction(self) -> Contraction | None:
        """The way back to the reference; None, with a note that says why, where it cannot be measured."""
        run = RunDirectory(self.out)
        measured = self._distances
        if measured is None or not run.checkpoints():
            if self.options.contraction and self.reference is None:
                self.notes.append("No reference checkpoint, so the distance to it was not measured.")
            return None
        if 0 not in measured.steps():
            measured.add(0, self.model)
        where = (self.config, measured.reference)
        try:
            neurons = route_of(*where, self.domain, self.other, self.options, self.on_progress)
        except CounterpointError as error:
            self.notes.append(f"The distance on the route was not measured: {error}")
            return None
        curvature = self._curvature(neurons, measured.reference)
        rate = float(grpo_config(self.config, "unused").learning_rate)
        num_shared = sum(int(chosen.sum()) for chosen in neurons.values())
        norms = measured.norms(neurons)
        return reading.contraction_of(norms, reading.read_looks(run), num_shared, curvature, rate)

    def _curvature(self, neurons: Neurons, reference: str) -> float | None:
        if not self.options.curvature:
            return None
        try:
            return curvature_on(
                neurons, self.config, reference, self.model, self.domain, self.options, self.on_progress
            )
        except CounterpointError as error:
            self.notes.append(f"The curvature on the route was not measured: {error}")
            return None

    def _write(self, contraction: Contraction | None) -> Refresh:
        result = self._result(contraction)
        if not rank_of_environment():
            write_result(self.out / "recovery" / "refresh.json", "refresh", result)
        return result

    def _result(self, contraction: Contraction | None) -> Refresh:
        run = RunDirectory(self.out)
        looks = reading.read_looks(run)
        former = self.plan.former
        stopped, harmed = reading.stop_of(self.domain, former, looks, run.state["status"])
        step, checkpoint = reading.last_checkpoint(run)
        return Refresh(
            model=self.model,
            reference=self.reference,
            domain=self.domain,
            other=self.other,
            run=str(self.out),
            checkpoint=checkpoint,
            options=self.options,
            stopped=stopped,
            harmed=harmed,
            steps=step,
            former=Estimate(former.mean, former.low, former.high),
            start=reading.estimates(looks[0]),
            evaluations=reading.evaluations_of(looks),
            changes=reading.changes_of(looks),
            contraction=contraction,
            verdict=reading.verdict_sentence(self.domain, former, looks, stopped, harmed),
            seconds=time.perf_counter() - self.began,
            notes=(*self.notes, *reading.notes_of(run, self.domain, looks, stopped)),
        )
