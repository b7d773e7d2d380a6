"""The few methods of TRL that are overridden or read; a new TRL that moves one of them fails here first."""

import inspect

import pytest
from trl import GRPOTrainer

EXPECTED = {
    "_generate_and_score_completions": ["self", "inputs"],
    "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    "_prepare_inputs": ["self", "generation_batch"],
    "training_step": ["self", "model", "inputs", "num_items_in_batch"],
    "_get_train_sampler": ["self", "dataset"],
    "_save_checkpoint": ["self", "model", "trial"],
    "_generate": ["self", "prompts"],
    "_generate_single_turn": [
        "self",
        "prompt_ids",
        "images",
        "multimodal_fields",
        "num_generations",
        "has_tool_images",
    ],
    "compute_loss": ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
    "_load_best_model": ["self"],
    "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
    "create_accelerator_and_postprocess": ["self"],
    "create_model_card": ["self", "model_name", "dataset_name", "tags"],
    "evaluate": ["self", "eval_dataset", "ignore_keys", "metric_key_prefix"],
    "predict": ["self", "test_dataset", "ignore_keys", "metric_key_prefix"],
    "train": ["self", "resume_from_checkpoint", "trial", "ignore_keys_for_eval"],
}


@pytest.mark.parametrize("method", EXPECTED)
def test_overridden_methods_have_the_signature_we_rely_on(method):
    assert list(inspect.signature(getattr(GRPOTrainer, method)).parameters) == EXPECTED[method]


def test_log_probabilities_are_asked_for_as_we_split_them():
    first = list(inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters)[:5]
    assert first == ["self", "model", "input_ids", "attention_mask", "logits_to_keep"]


READ = [
    *("_buffered_inputs", "_step", "_metrics", "reward_weights", "reward_funcs", "reward_func_names", "eos_token_ids"),
    *("beta", "epsilon_low", "epsilon_high", "temperature", "generation_config", "generation_kwargs", "ref_model"),
    *("aux_loss_enabled", "router_aux_loss_coef", "num_generations_eval"),
]


@pytest.mark.parametrize("name", READ)
def test_attributes_we_read_are_still_set(name):
    assert f"self.{name} = " in inspect.getsource(GRPOTrainer.__init__)
