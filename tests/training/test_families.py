"""Mixtures of experts and images: ``mixed`` is TRL's own gradient there too, or the default is safe and says so."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
)
from trl import GRPOTrainer

from counterpoint.domains.domain_rewards import DOMAIN_COLUMN, build_domain_rewards
from counterpoint.errors import DomainError
from counterpoint.pocket.tokenizer import new_tokenizer
from counterpoint.training import DomainGRPOTrainer
from trainer_helpers import DATA, REWARDS, GradientTape, digits, grpo_args, letters, relative_error, total_norm

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}


class Rowwise(GRPOTrainer):
    """Plain TRL on the rows that ours draws, in the same order."""

    def _get_train_sampler(self, dataset=None):
        return self.ours._sampler

    def _generate_and_score_completions(self, inputs):
        rows = self.ours.domain_rows
        places = [rows.place(example) for example in inputs]
        full = zip(rows.expand(places), places, strict=True)
        return super()._generate_and_score_completions([{**row, DOMAIN_COLUMN: domain} for row, (domain, _) in full])


def gradients(model, processor, folder, data, rewards, **settings):
    """Gradients of two steps, ours mixed and TRL's, from two copies of ``model``."""
    ours, theirs = GradientTape(), GradientTape()
    settings = {"strategy": "mixed", "max_steps": 2, "gradient_checkpointing": False, "optim": "sgd"} | settings
    trainer = DomainGRPOTrainer(
        model(), rewards, grpo_args(folder / "a", **settings), data, None, processor, callbacks=[ours]
    )
    trainer.train()
    trainer._sampler.set_epoch(0)
    functions = build_domain_rewards(rewards, list(data))
    Rowwise.ours = trainer
    Rowwise(
        model(),
        functions,
        grpo_args(folder / "b", **settings),
        trainer.domain_rows.index,
        None,
        processor,
        callbacks=[theirs],
    ).train()
    return trainer, ours.steps, theirs.steps


# Mixtures of experts

MIXTURES = {
    "mixtral": {"num_local_experts": 4, "router_aux_loss_coef": 0.01},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8},
}


def mixture(family):
    tokenizer = new_tokenizer()
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer), **SMALL, **MIXTURES[family], **ids)

    def make():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)

    return make, tokenizer


@pytest.mark.parametrize("family", MIXTURES)
def test_a_mixture_is_trls_and_its_balancing_loss_is_left_out_with_a_warning(family, tmp_path):
    make, tokenizer = mixture(family)
    tokenizer.padding_side = "left"
    own = make().config.router_aux_loss_coef
    with pytest.warns(UserWarning, match=f"router_aux_loss_coef={own}. Its balancing loss .* left out") as caught:
        trainer, ours, _ = gradients(make, tokenizer, tmp_path, DATA, REWARDS)
    assert sum("balancing loss" in str(warning.message) for warning in caught) == 1
    assert not trainer.aux_loss_enabled
    _, same, theirs = gradients(make, tokenizer, tmp_path, DATA, REWARDS, router_aux_loss_coef=0.0)
    for mine, explicit, reference in zip(ours, same, theirs, strict=True):
        assert total_norm(reference) > 1e-3
        assert relative_error(mine, reference) < 1e-6
        assert relative_error(explicit, reference) < 1e-6


def test_a_balancing_loss_that_is_asked_for_is_each_domains_own(tmp_path):
    make, tokenizer = mixture("mixtral")
    with pytest.warns(UserWarning, match=r"router_aux_loss_coef=0.5: each domain balances its experts for itself"):
        trainer, ours, theirs = gradients(make, tokenizer, tmp_path, DATA, REWARDS, router_aux_loss_coef=0.5)
    assert trainer.aux_loss_enabled
    routers = [name for name in theirs[0] if name.endswith("mlp.gate.weight")]
    assert relative_error({n: ours[0][n] for n in routers}, {n: theirs[0][n] for n in routers}) > 1e-3


@pytest.mark.parametrize("family", MIXTURES)
def test_a_mixture_is_resumed_with_the_experts_that_were_saved(family, tmp_path):
    make, tokenizer = mixture(family)
    tokenizer.padding_side = "left"

    def train(tape, resume_from=None):
        settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "router_aux_loss_coef": 0.0}
        args = grpo_args(tmp_path, strategy="mgs", gradient_checkpointing=False, **settings)
        trainer = DomainGRPOTrainer(make(), REWARDS, args, DATA, None, tokenizer, callbacks=[tape])
        trainer.train(resume_from_checkpoint=resume_from)
        return trainer

    whole, resumed = GradientTape(), GradientTape()
    train(whole)
    trainer = train(resumed, tmp_path / "checkpoint-1")
    (step,) = resumed.steps
    assert relative_error(step, whole.steps[1]) == 0
    trainer.state.best_model_checkpoint = str(tmp_path / "checkpoint-1")
    trainer._load_best_model()
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-1").state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in trainer.model.state_dict().items())


# Images

TEMPLATE = (
    "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
)


class ImagesAlone(Qwen2_5_VLProcessor):
    """Without videos, whose processor needs torchvision."""

    def check_argument_for_proper_class(self, name, argument):
        return type(argument) if name == "video_processor" else super().check_argument_for_proper_class(name, argument)


def processor():
    tokenizer = new_tokenizer()
    tokenizer.padding_side = "left"
    special = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.image_token, tokenizer.video_token = "<|image_pad|>", "<|video_pad|>"
    patches = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
    size = {"shortest_edge": 28 * 28, "longest_edge": 56 * 56 * 4}
    return ImagesAlone(
        image_processor=Qwen2VLImageProcessorPil(**patches, size=size),
        tokenizer=tokenizer,
        video_processor=Qwen2VLImageProcessorPil(**patches),
        chat_template=TEMPLATE,
    )


def vision_model(tokenizer):
    start, end, image, video = tokenizer.convert_tokens_to_ids(
        ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    )
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "patch_size": 14}
    config = Qwen2_5_VLConfig(
        text_config=SMALL | {"vocab_size": len(tokenizer), "rope_parameters": rope},
        vision_config=vision | {"out_hidden_size": 32, "fullatt_block_indexes": [1]},
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )

    def make():
        torch.manual_seed(0)
        model = Qwen2_5_VLForConditionalGeneration(config).float()
        model.generation_config = GenerationConfig(pad_token_id=0, bos_token_id=1, eos_token_id=2)
        return model

    return make


def picture(color, width, height):
    return Image.fromarray((np.ones((height, width, 3)) * np.array(color)).astype("uint8"))


def asked(text, image=None):
    row = {"prompt": [{"role": "user", "content": text}]}
    return row if image is None else row | {"images": [image]}


SIZES = {"red": [(56, 56), (28, 56)], "blue": [(56, 28), (84, 56)]}
COLORS = {"red": (255, 40, 0), "blue": (0, 40, 255)}


def pictures(name):
    rows = enumerate(SIZES[name] * 2)
    return [asked(f"{name}{i}", picture(np.array(COLORS[name]) * (0.5 + 0.1 * i), *size)) for i, size in rows]


def text_of(function):
    return lambda completions, **columns: function([c[0]["content"] for c in completions])


def test_images_reach_the_model_with_their_own_prompts(tmp_path):
    shown = processor()
    data, rewards = {name: pictures(name) for name in SIZES}, {"red": text_of(digits), "blue": text_of(letters)}
    settings = {"num_generations": 2, "max_steps": 1}
    _, (ours,), (theirs,) = gradients(vision_model(shown.tokenizer), shown, tmp_path, data, rewards, **settings)
    assert total_norm(theirs) > 1e-3
    assert relative_error(ours, theirs) < 1e-6


def test_images_in_one_domain_and_none_in_another_are_refused(tmp_path):
    data = {"red": [asked("red", picture((0, 0, 0), 28, 28))], "blue": [asked("blue")]}
    with pytest.raises(DomainError, match="prompts of 'red' have images and those of 'blue' have none"):
        DomainGRPOTrainer("none", {}, grpo_args(tmp_path), data)


def test_a_run_on_images_is_resumed_inside_a_generation(tmp_path):
    shown = processor()
    data, rewards = {name: pictures(name) for name in SIZES}, {"red": text_of(digits), "blue": text_of(letters)}
    make = vision_model(shown.tokenizer)

    def build(tape):
        settings = {"strategy": "mgs", "steps_per_generation": 8, "save_strategy": "steps", "save_steps": 1}
        args = grpo_args(tmp_path, max_steps=2, num_generations=2, gradient_checkpointing=False, **settings)
        return DomainGRPOTrainer(make(), rewards, args, data, None, shown, callbacks=[tape])

    whole, resumed = GradientTape(), GradientTape()
    build(whole).train()
    build(resumed).train(resume_from_checkpoint=tmp_path / "checkpoint-1")
    (step,) = resumed.steps
    assert relative_error(step, whole.steps[1]) == 0
