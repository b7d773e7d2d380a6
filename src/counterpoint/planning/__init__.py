"""What surgery will need on a cluster, computed from the model's shapes before anything is rented.

>>> plan = make_plan(model_shapes("8B"), Setup(gpus=8, domains=3), ("ddp", "fsdp2"))
>>> plan.ranks[1].surgery  # bytes that surgery adds on each GPU under FSDP2

``memory`` and ``traffic`` hold the formulas, ``words`` and ``table`` how they are shown.
"""

from .memory import BUFFERS, ITEM_SIZES, Buffers
from .plan import GIB, Backend, Plan, RankPlan, Setup, Surgery, first_fit, make_plan
from .shapes import BUILT_IN, Lora, ModelShapes, model_shapes
from .table import markdown_table

__all__ = [
    "BUFFERS",
    "BUILT_IN",
    "GIB",
    "ITEM_SIZES",
    "Backend",
    "Buffers",
    "Lora",
    "ModelShapes",
    "Plan",
    "RankPlan",
    "Setup",
    "Surgery",
    "first_fit",
    "make_plan",
    "markdown_table",
    "model_shapes",
]
