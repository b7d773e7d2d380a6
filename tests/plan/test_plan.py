"""Plans as a whole: shapes of known models, what each back end adds, and the sentences."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from counterpoint import plan as planning
from counterpoint.cli.plan import _name, _number
from counterpoint.config import LoraConfig, ModelConfig
from counterpoint.errors import ModelError, StrategyError
from counterpoint.plan import BUFFERS, GIB, Setup, make_plan, model_shapes, verdict
from counterpoint.pocket import model_path

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def llama():
    return model_shapes("8B")


@pytest.fixture(scope="module")
def pocket():
    return model_shapes("pocket")


def adapted(r, target_modules):
    return model_shapes(ModelConfig(path="pocket", lora=LoraConfig(r=r, target_modules=target_modules)))


@pytest.mark.parametrize(
    ("name", "label", "parameters"),
    [
        ("0.5B", "Qwen2.5-0.5B", 494_032_768),
        ("8B", "Llama-3.1-8B", 8_030_261_248),
        ("70B", "Llama-3.1-70B", 70_553_706_496),
    ],
)
def test_known_models_have_their_published_sizes(name, label, parameters):
    shapes = model_shapes(name)
    assert (shapes.label, shapes.num_trained, shapes.num_frozen) == (label, parameters, 0)


def test_shapes_are_those_of_the_weights(pocket):
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)
    assert dict(pocket.trained) == {name: tuple(p.shape) for name, p in loaded.named_parameters()}
    assert model_shapes(str(model_path() / "config.json")).trained == pocket.trained


def test_lora_trains_adapters_only(pocket):
    pytest.importorskip("peft", reason="the extra peft is not installed")
    shapes = adapted(4, "all-linear")
    assert shapes.num_frozen == pocket.num_trained
    assert all("lora_" in name for name in shapes.trained)
    twice = adapted(8, "all-linear")
    assert twice.num_trained == 2 * shapes.num_trained
    with pytest.raises(ModelError, match="PEFT cannot adapt"):
        adapted(4, ["nothing_of_that_name"])


def test_adapters_are_float32_and_the_rest_as_loaded(pocket):
    pytest.importorskip("peft", reason="the extra peft is not installed")
    shapes = adapted(4, "all-linear")
    rank = make_plan(shapes, Setup(dtype="bfloat16"), ("one process",)).ranks[0]
    assert (rank.frozen, rank.weights) == (2 * shapes.num_frozen, 4 * shapes.num_trained)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(ModelError, match=r"is no causal language model .* Give 0\.5B, 8B, 70B, 'pocket', a folder"):
        model_shapes(str(tmp_path))


def test_back_ends_of_a_known_model(llama):
    ddp, fsdp2 = make_plan(llama, Setup(gpus=8, domains=3, sync_each_batch=True), ("ddp", "fsdp2")).ranks
    weights = 4 * llama.num_trained
    assert (ddp.weights, ddp.gradient, ddp.moments, ddp.ddp_buckets) == (weights, weights, 2 * weights, weights)
    assert (fsdp2.weights, fsdp2.gradient, fsdp2.moments) == (weights // 8, weights // 8, weights // 4)
    assert (fsdp2.ddp_buckets, fsdp2.unsharded_gradient, fsdp2.host) == (0, 0, 0)
    assert fsdp2.surgery == 2 * weights // 8
    assert ddp.surgery > 2 * weights


def test_unsharded_gradients_between_reductions(llama):
    def unsharded(**changes):
        return make_plan(llama, Setup(gpus=8, domains=3, **changes), ("fsdp2",)).ranks[0].unsharded_gradient

    assert unsharded() == 2 * llama.num_trained  # reduced in bfloat16
    assert unsharded(mixed_precision=False) == 4 * llama.num_trained
    assert unsharded(sync_each_batch=True) == 0
    assert unsharded(micro_batches=3) == 0  # one per domain: each is reduced at once
    assert unsharded(micro_batches=4) > 0


def test_accelerate_trains_float32_under_fsdp2(llama):
    ddp, fsdp2 = make_plan(llama, Setup(gpus=8, dtype="bfloat16"), ("ddp", "fsdp2")).ranks
    assert ddp.weights == 2 * llama.num_trained
    assert fsdp2.weights == 4 * llama.num_trained // 8
    plain = make_plan(llama, Setup(gpus=8, dtype="bfloat16", mixed_precision=False), ("fsdp2",)).ranks[0]
    assert plain.weights == 2 * llama.num_trained // 8


def test_hybrid_shards_count_the_shard_dimension_only(llama):
    setup = Setup(gpus=64, domains=3, shards=8, sync_each_batch=True)
    hybrid = make_plan(llama, setup, ("fsdp2",))
    alone = make_plan(llama, replace(setup, gpus=8), ("fsdp2",))
    assert hybrid.ranks[0].device == alone.ranks[0].device
    assert _name(hybrid.ranks[0], hybrid) == "HSDP 8x8"


def test_one_domain_needs_no_surgery(pocket):
    for buffers in ("device", "bfloat16", "cpu"):
        plan = make_plan(pocket, Setup(gpus=2, domains=1, buffers=buffers), ("ddp", "fsdp2"))
        assert [(rank.surgery, rank.host) for rank in plan.ranks] == [(0, 0), (0, 0)]


def test_sizes_of_the_strategy_s_numbers(llama):
    def surgery_of(**options):
        return make_plan(llama, Setup(**options), ()).surgery

    surgery = surgery_of(domains=3)
    assert (surgery.strategy, surgery.groups, surgery.units, surgery.vectors) == ("mgs", 67, 291, 3)
    assert surgery_of(strategy="pcgrad").groups == 1
    with pytest.raises(StrategyError, match="Unknown strategy 'mgz'"):
        surgery_of(strategy="mgz")


def test_weightings_that_split_need_twice_the_vectors(llama):
    class Halved:
        uses_halves = True

        def __call__(self, gram_GDD, context):
            raise NotImplementedError

    strategy = {"grouping": "module", "weighting": Halved}
    setup = Setup(gpus=8, domains=3, strategy=strategy)
    plan = make_plan(llama, setup, ("fsdp2",))
    assert plan.surgery.vectors == 6
    # every micro-batch is collected, so one more gradient is alive than vectors, and none is accumulated unsharded
    assert plan.ranks[0].surgery == 6 * 4 * llama.num_trained // 8
    assert plan.ranks[0].unsharded_gradient == 0
    assert make_plan(llama, replace(setup, micro_batches=6), ("fsdp2",)).ranks[0].surgery == 5 * llama.num_trained // 2


@pytest.mark.parametrize(
    ("limit", "ways"),
    [
        (80, ["fits into"]),
        (40, ["buffers: bfloat16 would fit"]),
        (33, ["buffers: cpu would fit"]),
        (28, ["sync_each_batch: true would fit"]),
        (10, ["No kind of buffers makes it fit", "Training alone"]),
    ],
)
def test_what_would_fit_is_told_from_what_costs_least(llama, limit, ways):
    found = told(llama, Setup(gpus=8, domains=4), limit)
    assert any(way in found for way in ways)


def told(shapes, setup, limit, backend="fsdp2"):
    plan = make_plan(shapes, setup, (backend,))
    return f"{_name(plan.ranks[0], plan)}: {verdict(plan, plan.ranks[0], int(limit * GIB))}"


def test_sentences(llama):
    setup = Setup(gpus=8, domains=3)
    assert told(llama, setup, 80) == (
        "FSDP2: fits into 80.0 GiB: it needs 37.4 GiB, and 42.6 GiB are left for activations."
    )
    assert told(llama, setup, 32) == (
        "FSDP2: 37.4 GiB do not fit into 32.0 GiB. buffers: cpu would fit, with 30.9 GiB and 7.5 GiB of pinned host "
        "memory."
    )
    assert told(llama, setup, 25) == (
        "FSDP2: 37.4 GiB do not fit into 25.0 GiB. sync_each_batch: true would fit, with 22.4 GiB."
    )
    assert told(llama, setup, 17) == (
        "FSDP2: 37.4 GiB do not fit into 17.0 GiB. buffers: cpu and sync_each_batch: true would fit, with 15.9 GiB and "
        "7.5 GiB of pinned host memory."
    )
    assert told(llama, setup, 15).endswith(
        "No kind of buffers makes it fit. Shard over more GPUs, or train LoRA adapters."
    )
    assert told(llama, setup, 80, "ddp").endswith(
        "so no kind of buffers helps. Use FSDP2 on several GPUs, or train LoRA adapters."
    )


def test_plan_as_json(pocket):
    data = json.loads(json.dumps(make_plan(pocket, Setup(gpus=2), ("ddp", "fsdp2")).to_dict()))
    assert data["trained"] == pocket.num_trained
    assert [rank["backend"] for rank in data["backends"]] == ["ddp", "fsdp2"]
    for rank in data["backends"]:
        assert rank["device"] == rank["training"] + rank["surgery"]


def test_numbers_read_well():
    assert [_number(n) for n in (0, 1 / GIB, 0.5, 123.456, 1234.5)] == ["-", "<0.01", "0.50", "123.5", "1,234.5"]
    assert [planning.size(n) for n in (12, 2048, 3.5 * 2**20, 8 * GIB)] == ["12 B", "2.0 KiB", "3.5 MiB", "8.0 GiB"]


def test_the_documentation_s_table_is_what_the_plan_says():
    text = (ROOT / "docs" / "distributed.md").read_text()
    fsdp2, ddp = text.index("**FSDP2 (on one GPU: one process)**"), text.index("**DDP**\n")
    for name in ("0.5B", "8B", "70B"):
        shapes = model_shapes(name)
        for gpus in (1, 8, 64):
            assert line(shapes, gpus, "fsdp2" if gpus > 1 else "one process") in text[fsdp2:ddp]
            assert gpus == 1 or line(shapes, gpus, "ddp") in text[ddp:]


def line(shapes, gpus, backend):
    """GiB per GPU; what does not fit into 80 GiB is struck through."""
    by_buffers = {
        buffers: [
            make_plan(shapes, Setup(gpus, domains, buffers=buffers, sync_each_batch=True), (backend,)).ranks[0]
            for domains in (2, 3, 4)
        ]
        for buffers in BUFFERS
    }
    cells = [" / ".join(struck(f"+{gib(r.surgery)}", r.device) for r in ranks) for ranks in by_buffers.values()]
    host, training = " / ".join(gib(rank.host) for rank in by_buffers["cpu"]), by_buffers["cpu"][0].training
    return f"| {shapes.label} | {gpus} | {struck(gib(training), training)} | {' | '.join(cells)} | {host} |"


def gib(num_bytes):
    return _number(num_bytes / GIB)


def struck(text, num_bytes):
    return f"~~{text}~~" if num_bytes > 80 * GIB else text
