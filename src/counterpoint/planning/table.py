"""The memory table of the documentation, in Markdown."""

from .memory import BUFFERS
from .plan import GIB, Backend, RankPlan, Setup, describe_surgery, plan_rank
from .shapes import BUILT_IN, ModelShapes, model_shapes
from .words import number

GPUS = (1, 8, 64)
DOMAINS = (2, 3, 4)


def markdown_table(gpu_memory: float = 80.0) -> str:
    """GiB per GPU for every built-in shape on 1, 8 and 64 GPUs, one table for FSDP2 and one for DDP.

    What does not fit into ``gpu_memory`` GiB, training included, is struck through. FSDP2 reduces after every
    micro-batch, so it holds no unsharded gradient.
    """
    models = [model_shapes(name) for name in BUILT_IN]
    titles: dict[Backend, str] = {"fsdp2": "FSDP2 (on one GPU: one process)", "ddp": "DDP"}
    return "\n\n".join(
        f"**{title}**\n\n{_table(models, backend, gpu_memory * GIB)}" for backend, title in titles.items()
    )


def _table(models: list[ModelShapes], backend: Backend, limit: float) -> str:
    heads = [f"`{buffers}`, D = {' / '.join(map(str, DOMAINS))}" for buffers in BUFFERS]
    lines = [
        "| model | GPUs | training | " + " | ".join(heads) + " | host memory for `cpu` |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for model in models:
        lines += [_line(model, gpus, backend, limit) for gpus in GPUS if gpus > 1 or backend == "fsdp2"]
    return "\n".join(lines)


def _line(model: ModelShapes, gpus: int, backend: Backend, limit: float) -> str:
    where: Backend = backend if gpus > 1 else "one process"
    cells = []
    for buffers in BUFFERS:
        ranks = [
            _rank(model, Setup(gpus, domains, buffers=buffers, sync_each_batch=True), where) for domains in DOMAINS
        ]
        cells.append(" / ".join(_struck(f"+{number(rank.surgery)}", rank.device > limit) for rank in ranks))
    host = " / ".join(number(rank.host) for rank in ranks)
    training = _struck(number(ranks[0].training), ranks[0].training > limit)
    return f"| {model.label} | {gpus} | {training} | {' | '.join(cells)} | {host} |"


def _rank(model: ModelShapes, setup: Setup, backend: Backend) -> RankPlan:
    return plan_rank(model, setup, describe_surgery(model, setup), backend)


def _struck(text: str, strike: bool) -> str:
    return f"~~{text}~~" if strike else text
