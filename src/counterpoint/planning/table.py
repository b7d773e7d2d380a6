"""The memory table of the documentation, in Markdown."""

from .memory import BUFFERS
from .plan import GIB, Backend, RankPlan, Setup, describe_surgery, plan_rank
from .shapes import BUILT_IN, ModelShapes, model_shapes
from .words import gib

GPUS = (1, 8, 64)
DOMAINS = (2, 3, 4)


def markdown_table(gpu_memory: float = 80.0) -> str:
    """GiB per GPU for every built-in shape on 1, 8 and 64 GPUs, one table for FSDP2 and one for DDP.

    What is over ``gpu_memory`` GiB together with training itself is struck through. FSDP2 reduces after every
    micro-batch, so it holds no unsharded gradient.
    """
    models = [model_shapes(name) for name in BUILT_IN]
    parts = []
    for backend, title in (("fsdp2", "FSDP2"), ("ddp", "DDP")):
        parts.append(f"**{title}**\n\n" + _table(models, backend, gpu_memory * GIB))  # type: ignore[arg-type]
    return "\n\n".join(parts)


def _table(models: list[ModelShapes], backend: Backend, limit: float) -> str:
    groups = {"device": "`device`", "bfloat16": "`bfloat16`", "cpu": "`cpu`"}
    head = [f"{groups[buffers]}, D = {domains}" for buffers in BUFFERS for domains in DOMAINS]
    lines = [
        "| model | GPUs | training | " + " | ".join(head) + " | host for `cpu` |",
        "|---|--:|--:|" + "--:|" * (len(head) + 1),
    ]
    for model in models:
        for gpus in GPUS:
            if backend == "ddp" and gpus == 1:
                continue  # one process, the first row of the other table
            lines.append(_line(model, gpus, backend, limit))
    return "\n".join(lines)


def _line(model: ModelShapes, gpus: int, backend: Backend, limit: float) -> str:
    ranks = []
    for buffers in BUFFERS:
        for domains in DOMAINS:
            setup = Setup(gpus, domains, buffers=buffers, sync_each_batch=True)
            where: Backend = backend if gpus > 1 else "one process"
            ranks.append(plan_rank(model, setup, describe_surgery(model, setup), where))
    training = ranks[0].training
    cells = [_struck(gib(training), training > limit), *(_cell(rank, limit) for rank in ranks)]
    host = " / ".join(gib(rank.host) for rank in ranks if rank.host)
    return f"| {model.label} | {gpus} | " + " | ".join(cells) + f" | {host} |"


def _cell(rank: RankPlan, limit: float) -> str:
    return _struck(f"+{gib(rank.surgery)}", rank.device > limit)


def _struck(text: str, strike: bool) -> str:
    return f"~~{text}~~" if strike else text
