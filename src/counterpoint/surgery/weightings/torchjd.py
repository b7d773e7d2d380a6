"""TorchJD's Gram weightings as weightings of ours: the one file that knows TorchJD.

TorchJD (https://github.com/SimplexLab/TorchJD, MIT) is an optional dependency. Its weightings take one D x D Gram and
return D weights; many of them weigh like a mean, ours like a sum, so each method states how it is scaled:

* ``pref``: called with a preference vector of ones instead of 1/D each;
* ``times_d``: its weights are multiplied by D;
* ``as_is``: they are used as they are.

``keeps_sum`` says whether a group without conflict gets weights of exactly 1; such a group then never reaches TorchJD.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ...errors import MissingExtraError, StrategyError
from ..gram import conflicts
from .base import Context, Weighting


@dataclass(frozen=True)
class Method:
    """One TorchJD weighting: its class there, how its weights are brought to the scale of a sum, and its paper."""

    class_name: str
    paper: str
    scale: Literal["pref", "times_d", "as_is"] = "as_is"
    keeps_sum: bool = False
    stateful: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)


TORCHJD: dict[str, Method] = {
    "upgrad": Method("UPGradWeighting", "arXiv 2406.16232", scale="pref", keeps_sum=True),
    "dualproj": Method("DualProjWeighting", "arXiv 1706.08840", scale="pref", keeps_sum=True),
    "gradvac": Method("GradVacWeighting", "arXiv 2010.05874", stateful=True),
    "mgda": Method("MGDAWeighting", "arXiv 1810.04650", scale="times_d"),
    "cagrad": Method("CAGradWeighting", "arXiv 2110.14048", scale="times_d", defaults={"c": 0.4}),
    "imtl_g": Method("IMTLGWeighting", "Towards Impartial Multi-task Learning, ICLR 2021", scale="times_d"),
    "aligned_mtl": Method("AlignedMTLWeighting", "arXiv 2305.19000", scale="pref"),
    "fairgrad": Method("FairGradWeighting", "arXiv 2402.15638", defaults={"alpha": 1.0}),
}
"""TorchJD's weightings by our name."""


class TorchJDWeighting(Weighting):
    """A weighting that asks TorchJD for the weights of one group after the other.

    Random methods draw from PyTorch's CPU generator, which is seeded for every group and put back afterwards. A method
    with memory has one instance per group and set of domains present, so that a step without some domain neither
    erases nor mixes what it remembers; all of it travels in ``state_dict()``.

    A domain whose gradient is zero in a group is left out there and gets the weight 1 (except by methods with memory,
    which are always asked about all domains present).

    Raises ``MissingExtraError`` where TorchJD, or a solver that the method needs, is not installed.
    """

    def __init__(self, name: str, **options: Any) -> None:
        self.name = name
        self._method = TORCHJD[name]
        self._options = {**self._method.defaults, **options}
        try:
            from torchjd import aggregation
        except ImportError as error:
            raise MissingExtraError.for_extra(f"The weighting {name!r}", "torchjd") from error
        self._module = aggregation
        self._instances: dict[tuple[str, tuple[str, ...]], Any] = {}
        self._make(2)

    def __call__(self, gram_GDD: Tensor, context: Context) -> Tensor:
        """Weights [G, D] for Grams [G, D, D], both float64."""
        weights_GD = torch.ones(gram_GDD.shape[:2], dtype=torch.float64)
        conflict_G = conflicts(gram_GDD).any(-1).any(-1)
        with torch.random.fork_rng(devices=[]):
            for row, group in enumerate(context.groups):
                if conflict_G[row] or not self._method.keeps_sum:
                    torch.default_generator.manual_seed(context.generator(group).initial_seed())
                    weights_GD[row] = self._weigh(gram_GDD[row], group, context.domains)
        return weights_GD

    def state_dict(self) -> dict[str, Any]:
        # Numbers as lists: what TorchJD remembers has the Grams' float64, which Python's floats keep exactly.
        entries = []
        for (group, domains), instance in self._instances.items() if self._method.stateful else ():
            state = {name: value.tolist() for name, value in instance.state_dict().items()}
            entries.append({"group": group, "domains": list(domains), "state": state})
        return {"entries": entries}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._instances.clear()
        for entry in state["entries"]:
            domains = tuple(entry["domains"])
            instance = self._instance(entry["group"], domains)
            # TorchJD makes its buffers at the first call, and only then has somewhere to load them to.
            instance(torch.eye(len(domains), dtype=torch.float64))
            state = {name: torch.tensor(value, dtype=torch.float64) for name, value in entry["state"].items()}
            instance.load_state_dict(state)

    def _weigh(self, gram_DD: Tensor, group: str, domains: tuple[str, ...]) -> Tensor:
        if self._method.stateful:
            return self._instance(group, domains)(gram_DD)
        weights_D = torch.ones(len(domains), dtype=torch.float64)
        alive = (gram_DD.diagonal() > 0).nonzero().flatten()
        if len(alive) < 2:
            return weights_D
        instance = self._instance("", tuple(str(i) for i in range(len(alive))))
        scale = len(alive) if self._method.scale == "times_d" else 1
        weights_D[alive] = instance(gram_DD[alive][:, alive]) * scale
        return weights_D

    def _instance(self, group: str, domains: tuple[str, ...]) -> Any:
        key = (group, domains)
        if key not in self._instances:
            self._instances[key] = self._make(len(domains))
        return self._instances[key]

    def _make(self, num_domains: int) -> Any:
        options = dict(self._options)
        if self._method.scale == "pref":
            options.setdefault("pref_vector", torch.ones(num_domains, dtype=torch.float64))
        try:
            return getattr(self._module, self._method.class_name)(**options)
        except ImportError as error:
            raise MissingExtraError(f"The weighting {self.name!r} needs a solver. {error}") from error
        except TypeError as error:
            message = f"The weighting {self.name!r} does not take the options {self._options}: {error}."
            raise StrategyError(message) from error
