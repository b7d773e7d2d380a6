"""A model of two small layers on disk, a later edit of it, and completions whose rewards are made up."""

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from counterpoint.diagnosis import Rollout, Rollouts, save_rollouts
from counterpoint.diagnosis.rollouts import with_advantages
from counterpoint.pocket import model_path


def make_checkpoints(folder, scale=0.02):
    """Folders ``base`` and ``after``; ``after`` has other MLPs and another embedding."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=100,
        hidden_size=16,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        attention_dropout=0.5,  # on in training only: evaluation mode must turn it off
    )
    model = LlamaForCausalLM(config)
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    for name in ("base", "after"):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        with torch.no_grad():
            for key, param in model.named_parameters():
                if "mlp" in key or "embed" in key:
                    param.add_(scale * torch.randn_like(param))
    return folder / "base", folder / "after"


def made_up(domain, prompts=10, samples=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    items = []
    for group in range(prompts):
        prompt = tuple(torch.randint(3, 100, (4 + group % 3,), generator=generator).tolist())
        for _ in range(samples):
            ids = tuple(torch.randint(3, 100, (3,), generator=generator).tolist())
            items.append(Rollout(group, prompt, (*ids, 2), float(torch.rand(1, generator=generator) > 0.5), 0.0))
    return Rollouts(domain, with_advantages(items))


def make_config(folder, base):
    path = folder / "config.yaml"
    path.write_text(
        f"""model: {{path: {base}}}
run: {{name: test, dir: {folder}, device: cpu}}
strategy: {{name: sequential, order: [math, qa], steps: 1}}
domains:
  math: {{source: pocket}}
  qa: {{source: pocket}}
training: {{max_completion_length: 4}}
evaluation: {{prompts: 8, samples: 2}}
"""
    )
    return path


def make_completions(folder, **kwargs):
    path = folder / "completions.jsonl"
    save_rollouts(path, made_up("math", **kwargs), made_up("qa", seed=1))
    return path
