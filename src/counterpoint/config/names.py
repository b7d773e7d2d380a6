"""Names a configuration may use, kept here so that reading one never imports torch.

A test holds these equal to the registries of ``counterpoint.surgery``.
"""

NAMED_STRATEGIES: dict[str, tuple[str, str]] = {
    "mixed": ("global", "ones"),
    "pcgrad": ("global", "pcgrad"),
    "mgs": ("module", "pcgrad"),
    "mgs-tensor": ("tensor", "pcgrad"),
    "mgs-significant": ("module", "significant"),
    "mgs-ema": ("module", "ema"),
    "mgs-shuffled": ("module", "shuffled"),
}
"""Strategy name -> (grouping, weighting)."""

SEQUENTIAL = "sequential"
"""The strategy that is stages over an order of domains, not a weighting."""

STRATEGIES: tuple[str, ...] = (*NAMED_STRATEGIES, SEQUENTIAL)

GROUPINGS: tuple[str, ...] = ("global", "layer", "module", "tensor")

WEIGHTINGS: tuple[str, ...] = (
    "ones",
    "pcgrad",
    "significant",
    "ema",
    "shuffled",
    "static",
    "upgrad",
    "dualproj",
    "gradvac",
    "mgda",
    "cagrad",
    "imtl_g",
    "aligned_mtl",
    "fairgrad",
)
"""The first six are our own; the others need the ``torchjd`` extra."""

OPTIONS: dict[str, tuple[str, ...]] = {
    "ones": (),
    "pcgrad": (),
    "significant": ("level", "decay"),
    "ema": ("decay",),
    "shuffled": (),
    "static": ("weights",),
}
"""Weighting of our own -> what may stand in ``strategy.options``."""

PROTECTING: tuple[str, ...] = ("pcgrad", "significant", "ema")
"""The weightings that can protect domains."""

MAX_PROTECTED = 7
