"""TorchJD's Gram weightings as weightings of ours: the one file that knows TorchJD.

TorchJD (https://github.com/SimplexLab/TorchJD, MIT) is an optional dependency. Its weightings take one D x D Gram and
return D weights; many of them weigh like a mean, ours like a sum, so each method states how it is scaled:

* ``pref``: called with a preference vector of ones instead of 1/D each;
* ``times_d``: its weights are multiplied by D;
* ``as_is``: they are used as they are.

``keeps_sum`` says whether a group without conflict gets weights of exactly 1; such a group then never reaches TorchJD.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Le, doc
from torch import Tensor

from ...errors import MissingExtraError
from ..gram import conflicts
from .base import Context, Weighting


class TorchJDWeighting(Weighting):
    """Base: asks TorchJD for the weights of one group after the other.

    Random methods draw from PyTorch's CPU generator, which is seeded for every group and put back afterwards. A method
    with memory has one instance per group and set of domains present, so that a step without some domain neither
    erases nor mixes what it remembers; all of it travels in ``state_dict()``.

    A domain whose gradient is zero in a group is left out there and gets the weight 1 (except by methods with memory,
    which are always asked about all domains present).

    Raises ``MissingExtraError`` where TorchJD, or a solver that the method needs, is not installed.
    """

    theirs: ClassVar[str]
    """The class in ``torchjd.aggregation``."""
    scale: ClassVar[Literal["pref", "times_d", "as_is"]] = "as_is"
    keeps_sum: ClassVar[bool] = False
    stateful: ClassVar[bool] = False

    def __init__(self) -> None:
        self._start()

    def _start(self, **options: Any) -> None:
        """Takes the options that TorchJD's class is made with."""
        try:
            from torchjd import aggregation
        except ImportError as error:
            raise MissingExtraError.for_extra(f"The weighting {self.name!r}", "torchjd") from error
        self._module, self._options = aggregation, options
        self._instances: dict[tuple[str, tuple[str, ...]], Any] = {}
        self._make(2)

    def __call__(self, gram_GDD: Tensor, context: Context) -> Tensor:
        """Weights [G, D] for Grams [G, D, D], both float64."""
        weights_GD = torch.ones(gram_GDD.shape[:2], dtype=torch.float64)
        conflict_G = conflicts(gram_GDD).any(-1).any(-1)
        with torch.random.fork_rng(devices=[]):
            for row, group in enumerate(context.groups):
                if conflict_G[row] or not self.keeps_sum:
                    torch.default_generator.manual_seed(context.generator(group).initial_seed())
                    weights_GD[row] = self._weigh(gram_GDD[row], group, context.domains)
        return weights_GD

    def state_dict(self) -> dict[str, Any]:
        # Numbers as lists: what TorchJD remembers has the Grams' float64, which Python's floats keep exactly.
        entries = []
        for (group, domains), instance in self._instances.items() if self.stateful else ():
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
        if self.stateful:
            return self._instance(group, domains)(gram_DD)
        weights_D = torch.ones(len(domains), dtype=torch.float64)
        alive = (gram_DD.diagonal() > 0).nonzero().flatten()
        if len(alive) < 2:
            return weights_D
        instance = self._instance("", tuple(str(i) for i in range(len(alive))))
        scale = len(alive) if self.scale == "times_d" else 1
        weights_D[alive] = instance(gram_DD[alive][:, alive]) * scale
        return weights_D

    def _instance(self, group: str, domains: tuple[str, ...]) -> Any:
        key = (group, domains)
        if key not in self._instances:
            self._instances[key] = self._make(len(domains))
        return self._instances[key]

    def _make(self, num_domains: int) -> Any:
        ones = {"pref_vector": torch.ones(num_domains, dtype=torch.float64)} if self.scale == "pref" else {}
        try:
            return getattr(self._module, self.theirs)(**self._options, **ones)
        except ImportError as error:
            raise MissingExtraError(f"The weighting {self.name!r} needs a solver. {error}") from error


class UPGrad(TorchJDWeighting):
    """Every gradient projected onto the cone that no other opposes, then summed."""

    name, paper, theirs = "upgrad", "2406.16232", "UPGradWeighting"
    scale, keeps_sum = "pref", True


class DualProj(TorchJDWeighting):
    """The sum projected onto the cone that no gradient opposes."""

    name, paper, theirs = "dualproj", "1706.08840", "DualProjWeighting"
    scale, keeps_sum = "pref", True


class GradVac(TorchJDWeighting):
    """Cosines raised to a running target; the sum only until that target is positive."""

    name, paper, theirs = "gradvac", "2010.05874", "GradVacWeighting"
    stateful = True

    def __init__(
        self,
        beta: Annotated[float, Ge(0), Le(1), doc("Weight of a step in the target.")] = 0.5,
        eps: Annotated[float, Gt(0), doc("Least product of two norms.")] = 1e-08,
    ) -> None:
        self._start(beta=beta, eps=eps)


class MGDA(TorchJDWeighting):
    """The shortest combination of the gradients."""

    name, paper, theirs = "mgda", "1810.04650", "MGDAWeighting"
    scale = "times_d"

    def __init__(
        self,
        epsilon: Annotated[float, Gt(0), doc("Change of the weights at which the search stops.")] = 0.001,
        max_iters: Annotated[int, Gt(0), doc("Most rounds of the search.")] = 100,
    ) -> None:
        self._start(epsilon=epsilon, max_iters=max_iters)


class CAGrad(TorchJDWeighting):
    """The best worst case near the mean; at `c = 0` the sum."""

    name, paper, theirs = "cagrad", "2110.14048", "CAGradWeighting"
    scale = "times_d"

    def __init__(
        self,
        c: Annotated[float, Ge(0), doc("How far from the mean, in its length.")] = 0.4,
        norm_eps: Annotated[float, Ge(0), doc("Gram norm below which the mean is taken.")] = 0.0001,
    ) -> None:
        self._start(c=c, norm_eps=norm_eps)


class IMTLG(TorchJDWeighting):
    """Equal projections on all gradients."""

    name, paper, theirs = "imtl_g", "Towards Impartial Multi-task Learning, ICLR 2021", "IMTLGWeighting"
    scale = "times_d"


class AlignedMTL(TorchJDWeighting):
    """Gradients made orthogonal and equally long; the sum only where they are so."""

    name, paper, theirs = "aligned_mtl", "2305.19000", "AlignedMTLWeighting"
    scale = "pref"

    def __init__(
        self, scale_mode: Annotated[Literal["min", "median", "rmse"], doc("Whose length they get.")] = "min"
    ) -> None:
        self._start(scale_mode=scale_mode)


class FairGrad(TorchJDWeighting):
    """Alpha-fair progress of all domains, of a length of its own: choose the learning rate anew."""

    name, paper, theirs = "fairgrad", "2402.15638", "FairGradWeighting"

    def __init__(
        self,
        alpha: Annotated[float, Gt(0), doc("How much the worst domain counts.")] = 1.0,
        max_iters: Annotated[int | None, doc("Most rounds of the solver; null means its own number.")] = None,
    ) -> None:
        self._start(alpha=alpha, max_iters=max_iters)
