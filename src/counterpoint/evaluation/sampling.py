"""Samples completions from a model, without touching the random state of the training around it.

Batches have random streams of their own, so any rank can generate any batch and the result is the same.

Legend: B rows of a batch, T tokens.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from transformers import GenerationConfig

from counterpoint.errors import DivergedError
from counterpoint.evaluation.stopping import stop_length
from counterpoint.launch import Launch

ALONE = Launch(0, 1)

Engine = Callable[[list[list[int]], "Sampling"], list[list[int]]]
"""``(prompt_ids, sampling)`` -> the ids of one completion per prompt, where these do not come from the model itself."""

Prompt = str | list[dict[str, Any]]


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn. ``temperature=0`` is greedy decoding.

    ``stop`` are strings that end a completion; the token that completes one is kept. ``options`` are further settings
    of ``transformers.GenerationConfig``, ``chat_template_kwargs`` what the chat template is given beside the messages.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    batch_size: int = 64
    seed: int = 0
    top_k: int = 0
    min_p: float | None = None
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_training(cls, training: Mapping[str, Any], **own: Any) -> Self:
        """What the settings ``training`` of TRL say of prompts and sampling; ``own`` ones stand above them."""
        options = dict(training.get("generation_kwargs") or {})
        given = {**training, **options}
        named = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "chat_template_kwargs")
        chosen = {name: given[name] for name in named if given.get(name) is not None}
        for name in {"temperature", "top_p", "min_p", "repetition_penalty"} & chosen.keys():
            chosen[name] = float(chosen[name])  # generation refuses a temperature of 1 that is no float
        if given.get("cache_implementation") is not None:
            options["cache_implementation"] = given["cache_implementation"]
        return cls(**chosen | own, options=options)

    def within(self, own: Mapping[str, Any]) -> Self:
        """The same with what a domain has for itself of ``training``: its own settings stand above all others."""
        names = {"temperature": "temperature", "top_p": "top_p", "max_completion_length": "max_new_tokens"}
        changed = {ours: own[name] for name, ours in names.items() if name in own}
        return replace(self, **changed, stop=tuple(own.get("stop", self.stop)))

    def settings(self) -> dict[str, Any]:
        """Those settings of ``GenerationConfig`` that TRL gives in training, so that what it leaves to the model's own
        generation settings is left to them here too.
        """
        sampled = self.temperature > 0
        return {
            "cache_implementation": None,
            **self.options,
            "max_new_tokens": self.max_new_tokens,
            "do_sample": sampled,
            "temperature": self.temperature if sampled else None,
            "top_p": self.top_p if sampled else None,
            "top_k": self.top_k if sampled else None,
            "min_p": self.min_p if sampled else None,
            "repetition_penalty": self.repetition_penalty,
        }


@dataclass(frozen=True)
class Completion:
    """One completion: its text, its length in tokens (end token included) and whether the limit cut it off.

    ``ids`` are its tokens, end token included.
    """

    text: str
    num_tokens: int
    truncated: bool
    ids: tuple[int, ...] = ()


def render_prompt(tokenizer: Any, prompt: Prompt, chat_template_kwargs: Mapping[str, Any]) -> str:
    """The text that the model sees for a plain prompt or a list of chat messages."""
    if isinstance(prompt, str):
        return prompt
    return tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False, **chat_template_kwargs)


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    on_batch: Callable[[int], None] = lambda done: None,
    launch: Launch = ALONE,
    engine: Engine | None = None,
) -> list[Completion]:
    """One completion per prompt, in order.

    The ranks of ``launch`` divide the batches, and all return everything. Each calls the model equally often, as a
    model whose parts lie on all ranks needs it.

    Prompts are left-padded per batch; longest first, so that memory fails early and batches waste little padding.

    Args:
        model: a causal language model of transformers, on any device. Its training mode is restored.
        tokenizer: its tokenizer; must have a pad token.
        prompts: plain texts or lists of chat messages; repeat a prompt to sample it several times.
        sampling: temperature, lengths, batch size and the seed of a private random stream.
        on_batch: called with the number of completions done after each batch (of every rank).
        launch: the ranks that take part.
        engine: the rollout engine of training, in place of ``model.generate``; its random stream is its own.
    """
    order = sorted(range(len(prompts)), key=lambda i: -len(str(prompts[i])))
    batches = [order[start : start + sampling.batch_size] for start in range(0, len(order), sampling.batch_size)]
    own: dict[int, Completion] = {}
    with _evaluating(model):
        for first in range(0, len(batches), launch.size):
            at_once = batches[first : first + launch.size]
            number = first + min(launch.rank, len(at_once) - 1)  # a rank without a batch repeats the last one
            torch.manual_seed(_batch_seed(sampling.seed, number))
            chosen = batches[number]
            repeated = (
                [*chosen, *chosen[:1] * (len(at_once[0]) - len(chosen))] if engine else chosen
            )  # alike on all ranks
            batch = _generate_batch(model, tokenizer, [prompts[i] for i in repeated], sampling, engine)
            own |= dict(zip(chosen, batch, strict=False))
            on_batch(sum(map(len, at_once)))
    merged: dict[int, Completion] = {}
    for part in launch.gather(own):
        merged |= part
    return [merged[i] for i in range(len(prompts))]


def _batch_seed(seed: int, number: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _generate_batch(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], sampling: Sampling, engine: Engine | None
) -> list[Completion]:
    chat = not isinstance(prompts[0], str)
    texts = [render_prompt(tokenizer, prompt, sampling.chat_template_kwargs) for prompt in prompts]
    if engine is not None:
        found = engine(tokenizer(texts, add_special_tokens=not chat)["input_ids"], sampling)
        return [_completion(tokenizer, ids, end_token_ids(model, tokenizer), sampling.stop) for ids in found]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=not chat)
    inputs = {key: inputs[key].to(model.device) for key in ("input_ids", "attention_mask")}
    stop_ids = end_token_ids(model, tokenizer)
    settings = sampling.settings() | {
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": stop_ids,
        "bos_token_id": tokenizer.bos_token_id,
    }
    try:
        output_BT = model.generate(**inputs, generation_config=GenerationConfig(**settings))
        output_BT = output_BT[:, inputs["input_ids"].shape[1] :]
    except RuntimeError as error:
        if "probability tensor contains" not in str(error):
            raise
        raise DivergedError(
            "Evaluation: the model's probabilities are not numbers. Its weights are too large for its dtype, or "
            "training has diverged: use model.dtype float32, or a lower learning_rate."
        ) from error
    return [_completion(tokenizer, ids, stop_ids, sampling.stop) for ids in output_BT.tolist()]


def _completion(tokenizer: Any, ids: list[int], stop_ids: Sequence[int], stop: Sequence[str]) -> Completion:
    """Cut after the first end token, as later ones may be padding, or where a stop string ends it."""
    end = next((i for i, token in enumerate(ids) if token in stop_ids), None)
    kept = ids if end is None else ids[: end + 1]
    stopped = stop_length(tokenizer, kept, stop)
    kept, truncated = kept[:stopped], end is None and stopped is None
    return Completion(tokenizer.decode(kept, skip_special_tokens=True), len(kept), truncated, tuple(kept))


def end_token_ids(model: Any, tokenizer: Any) -> list[int]:
    """All token ids that end a completion: the tokenizer's and those of the model's generation config."""
    declared = getattr(model.generation_config, "eos_token_id", None)
    declared = [] if declared is None else [declared] if isinstance(declared, int) else list(declared)
    return sorted({tokenizer.eos_token_id, *declared})


def rollout_engine(trainer: Any) -> Engine | None:
    """The vLLM engine with which ``trainer`` samples, with the weights that it has now; None where it has none."""
    if not trainer.use_vllm:
        return None
    vllm = trainer.vllm_generation

    def complete(prompt_ids: list[list[int]], sampling: Sampling) -> list[list[int]]:
        settings = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
            "max_completion_length": sampling.max_new_tokens,
        }
        with replaced(vllm, settings):
            completion_ids, _ = trainer._generate_single_turn(prompt_ids, None, {}, 1)
        return [list(ids) for ids in completion_ids]

    return complete


@contextmanager
def replaced(holder: Any, values: Mapping[str, Any]) -> Iterator[None]:
    """Other values of some attributes of ``holder``, put back at the end."""
    before = {name: getattr(holder, name) for name in values}
    vars(holder).update(values)
    try:
        yield
    finally:
        vars(holder).update(before)


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        # no_grad, not inference_mode: what FSDP2 gathers here is used in training again
        with torch.random.fork_rng(), torch.no_grad():
            yield
    finally:
        model.train(was_training)
