"""Conflicts neuron by neuron: tested in chunks, kept as two numbers per neuron and pair.

Legend: M modules (the MLP of one layer), N neurons, Q pairs of domains, S splits of all domains, H bins.
"""

import torch
from torch import Tensor

from counterpoint.diagnosis.conflict_analysis.controls import Control, shuffled, turned, verdicts
from counterpoint.diagnosis.conflict_analysis.noise import PairTests, pair_tests
from counterpoint.diagnosis.conflict_analysis.results import NeuronConflicts

BINS = 41
"""Bins of cosines from -1 to 1; odd, so that zero lies in the middle of one."""

_KINDS = ("measured", "shuffled labels", "random signs")


class NeuronTests:
    """Takes Grams of neurons as they come, tests them at once with both controls (one draw each), and forgets them."""

    def __init__(self, domains: tuple[str, ...], level: float, seed: int) -> None:
        self._domains = domains
        self._level = level
        self._seed = seed
        self._found: dict[str, dict[int, dict[str, list[PairTests]]]] = {}

    def add(self, metric: str, layer: int, gram_NSS: Tensor) -> None:
        """Tests the Grams of some neurons of one layer."""
        place = self._found.setdefault(metric, {}).setdefault(layer, {kind: [] for kind in _KINDS})
        # one draw for all neurons: they share their splits, and so would their labels
        labels, signs = (torch.Generator().manual_seed(self._seed) for _ in range(2))
        draws = (gram_NSS, shuffled(gram_NSS, len(self._domains), labels), turned(gram_NSS, len(self._domains), signs))
        for kind, draw in zip(_KINDS, draws, strict=True):
            place[kind].append(pair_tests(draw, len(self._domains), self._level))

    def result(self, metric: str, pairs: tuple[tuple[str, str], ...]) -> NeuronConflicts | None:
        """Everything about one metric; None where no neuron was told."""
        layers = sorted(self._found.get(metric, {}))
        if not layers:
            return None
        found = {kind: [_joined(self._found[metric][layer][kind]) for layer in layers] for kind in _KINDS}
        verdict = {kind: _split(verdicts(_joined(found[kind]), self._level), found[kind]) for kind in _KINDS}
        measured = verdict["measured"]
        return NeuronConflicts(
            modules=tuple(f"layers.{layer}.mlp" for layer in layers),
            neurons=sum(map(len, measured)),
            pairs=pairs,
            tested=sum(int(tests.p_value.isfinite().sum()) for tests in found["measured"]),
            conflicts=sum(int((v < 0).sum()) for v in measured),
            synergies=sum(int((v > 0).sum()) for v in measured),
            conflict_share_MQ=torch.stack([(v < 0).double().mean(0) for v in measured]),
            synergy_share_MQ=torch.stack([(v > 0).double().mean(0) for v in measured]),
            negative_share_MQ=self._negative(found["measured"]),
            noise_negative_share_MQ=self._negative(found["random signs"]),
            edges_H=torch.linspace(-1, 1, BINS + 1),
            histogram_MQH=torch.stack([_histogram(tests.cosine) for tests in found["measured"]]),
            noise_histogram_MQH=torch.stack([_histogram(tests.cosine) for tests in found["random signs"]]),
            controls=tuple(self._control(kind, found[kind], verdict[kind]) for kind in _KINDS[1:]),
        )

    def _negative(self, modules: list[PairTests]) -> Tensor:
        return torch.stack([((t.p_value <= self._level) & (t.product < 0)).double().mean(0) for t in modules])

    def _control(self, kind: str, modules: list[PairTests], verdict: list[Tensor]) -> Control:
        tests = sum(int(t.p_value.isfinite().sum()) for t in modules)
        conflicts = sum(int((v < 0).sum()) for v in verdict)
        negative = sum(int(((t.p_value <= self._level) & (t.product < 0)).sum()) for t in modules)
        synergies = sum(int((v > 0).sum()) for v in verdict)
        share = negative / tests if tests else float("nan")
        return Control(kind, 1, tests, conflicts, synergies, int(conflicts > 0), share)


def _joined(parts: list[PairTests]) -> PairTests:
    return PairTests(*(torch.cat([getattr(part, name) for part in parts]) for name in PairTests.__annotations__))


def _split(values_NQ: Tensor, like: list[PairTests]) -> list[Tensor]:
    return list(values_NQ.split([len(tests.product) for tests in like]))


def _histogram(cosine_NQ: Tensor) -> Tensor:
    """Counts [Q, H] int64; neurons without a cosine are left out."""
    columns = [column[column.isfinite()].float() for column in cosine_NQ.unbind(1)]
    return torch.stack([torch.histc(column, bins=BINS, min=-1, max=1) for column in columns]).long()
