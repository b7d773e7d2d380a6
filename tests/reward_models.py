"""A small random reward model with a chat template of its own, as a checkpoint folder."""

import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from counterpoint.pocket.tokenizer import new_tokenizer

TEMPLATE = "{% for m in messages %}{{ m.role[0] }}: {{ m.content }}\n{% endfor %}{{ eos_token }}"


def save_reward_model(folder, template=TEMPLATE, **settings):
    """Two labels, another length and so on by ``settings``."""
    tokenizer = new_tokenizer()
    tokenizer.chat_template = template
    torch.manual_seed(3)
    config = LlamaConfig(
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "num_labels": 1,
            "max_position_embeddings": 128,
            "pad_token_id": tokenizer.pad_token_id,
            "initializer_range": 0.3,
        }
        | settings
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
