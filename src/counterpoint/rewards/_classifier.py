"""A sequence classifier of transformers with one label: encodes conversations, and scores them in batches.

Imports torch, unlike the other modules of rewards: it is imported when a ``reward_model`` is built.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import torch
from accelerate.state import PartialState
from huggingface_hub.errors import StrictDataclassError
from jinja2 import TemplateError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from counterpoint.errors import RewardError, first_line
from counterpoint.inputs import LIBRARY_FAULTS, refuse_devices, refuse_pickles
from counterpoint.rewards._base import one_of

_FAULTS: tuple[type[Exception], ...] = (*LIBRARY_FAULTS, SafetensorError, StrictDataclassError, TemplateError)
_DTYPES = ("auto", "float32", "bfloat16", "float16")
_NO_LIMIT = 10**9
"""Above it a tokenizer's ``model_max_length`` says that it knows none."""


_LOADED: WeakValueDictionary[tuple[Any, ...], Any] = WeakValueDictionary()
"""The classifiers in use, so that several domains of a process share one."""


@dataclass(frozen=True)
class Encoded:
    """The inputs of one conversation by name, token ids among them, and whether its beginning was cut off."""

    inputs: dict[str, list[int]]
    cut: bool

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for equal inputs."""
        return tuple((name, *values) for name, values in self.inputs.items())


class Classifier:
    """The classifier at ``path``: settings and tokenizer at once, weights with the first score.

    Raises:
        RewardError: there is no sequence classifier with one label in safetensors, or an option does not fit it.
    """

    def __init__(
        self,
        path: str,
        device: str | Sequence[str] | None,
        batch_size: int,
        max_length: int | None,
        dtype: str,
        revision: str | None,
        trust_remote_code: bool,
    ) -> None:
        self.path, self.dtype, self.batch_size = path, one_of("dtype", dtype, _DTYPES), batch_size
        self._devices = _checked_devices(device)
        self._hub = {"revision": revision, "trust_remote_code": trust_remote_code}
        refuse_devices(path, RewardError)
        config = self._read(AutoConfig, "configuration")
        _check_kind(path, config, trust_remote_code)
        self.tokenizer = self._read(AutoTokenizer, "tokenizer")
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if self.tokenizer.pad_token_id is None:
            raise self._wrong("its tokenizer has neither a padding token nor an end token. Set one")
        self.has_template = bool(self.tokenizer.chat_template)
        special = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        self._marks = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or "(?!)")
        self.max_length = self._longest(config, max_length)
        self._model: Any = None

    def _read(self, kind: Any, what: str) -> Any:
        try:
            return kind.from_pretrained(self.path, **self._hub)
        except Exception as error:
            if type(error) is not Exception and not isinstance(error, _FAULTS):  # tokenizers has no error of its own
                raise
            reason = first_line(error).rstrip(".")
            raise self._wrong(
                f"no {what} could be read ({reason}). Give a folder that save_pretrained wrote, or a hub id"
            ) from error

    def _wrong(self, what: str) -> RewardError:
        return RewardError(f"reward_model: model {self.path}: {what}.")

    def _longest(self, config: Any, wanted: int | None) -> int:
        limits = [getattr(config.get_text_config(), "max_position_embeddings", None), self.tokenizer.model_max_length]
        limit = min((n for n in limits if isinstance(n, int) and 0 < n < _NO_LIMIT), default=None)
        if limit is None and wanted is None:
            raise self._wrong("it does not say how many tokens it can read. Set max_length")
        if limit is not None and wanted is not None and wanted > limit:
            raise self._wrong(f"max_length is {wanted}, and it can read {limit} tokens. Give at most that")
        return wanted or limit or 0

    # Conversations

    def without_marks(self, answer: str) -> str:
        """``answer`` with a space in place of every special token, so that no text can end its own turn."""
        return self._marks.sub(" ", answer)

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """A conversation through the classifier's own chat template.

        Raises:
            RewardError: the template refuses it.
        """
        try:
            return str(self.tokenizer.apply_chat_template(list(messages), tokenize=False))
        except _FAULTS as error:
            reason = first_line(error).rstrip(".")
            raise self._wrong(f"its chat template cannot render the prompt ({reason}). Mend or drop the row") from error

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> Encoded:
        """A conversation as its chat template renders it, which holds all special tokens."""
        text = self.render(messages)
        return self._cut(self.tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False))

    def encode_plain(self, prompt: str, answer: str) -> Encoded:
        """Without a chat template: a pair of texts for an encoder, and for others one text with an end token."""
        how: dict[str, Any] = {"return_attention_mask": False, "verbose": False}
        if self.tokenizer.cls_token is None or self.tokenizer.sep_token is None:
            return self._cut(self.tokenizer(prompt + answer + (self.tokenizer.eos_token or ""), **how))
        whole = self.tokenizer(prompt, answer, **how)
        if len(whole["input_ids"]) <= self.max_length:
            return Encoded(dict(whole), cut=False)
        self.tokenizer.truncation_side = "left"
        return Encoded(dict(self.tokenizer(prompt, answer, truncation=True, max_length=self.max_length, **how)), True)

    def _cut(self, whole: Mapping[str, list[int]]) -> Encoded:
        """The end of what is too long: the logit is read there."""
        cut = len(whole["input_ids"]) > self.max_length
        return Encoded({name: values[-self.max_length :] for name, values in whole.items()}, cut)

    # Scores

    def scores(self, conversations: Sequence[Encoded]) -> list[float]:
        """The float32 logit of each, those of about one length in a batch."""
        if not conversations:
            return []
        model = self.model
        order = sorted(range(len(conversations)), key=lambda i: len(conversations[i].inputs["input_ids"]), reverse=True)
        found = [0.0] * len(conversations)
        for start in range(0, len(order), self.batch_size):
            places = order[start : start + self.batch_size]
            with torch.inference_mode():
                output = model(**self._batch([conversations[place] for place in places], model.device))
            logits = getattr(output, "logits", None)
            if logits is None or logits.shape != (len(places), 1):
                shape = None if logits is None else list(logits.shape)
                raise self._wrong(f"logits [{len(places)}, 1] were expected, found {shape}. It is no reward model")
            for place, logit in zip(places, logits[:, 0].float().tolist(), strict=True):
                found[place] = logit
        return found

    def _batch(self, conversations: Sequence[Encoded], device: Any) -> dict[str, torch.Tensor]:
        inputs = {name: [one.inputs[name] for one in conversations] for name in conversations[0].inputs}
        how = {"padding_side": "right", "return_attention_mask": True, "return_tensors": "pt"}
        return dict(self.tokenizer.pad(inputs, **how).to(device))

    @property
    def model(self) -> Any:
        """The classifier on its device, read when it is first asked for."""
        if self._model is None:
            self._model = self._load()
        return self._model

    def _load(self) -> Any:
        device = _device(self._devices)
        key = (self.path, *self._hub.values(), self.dtype, str(device))
        if (loaded := _LOADED.get(key)) is not None:
            return loaded
        try:
            with _all_weights():
                model, info = AutoModelForSequenceClassification.from_pretrained(
                    self.path,
                    dtype=self.dtype if self.dtype == "auto" else getattr(torch, self.dtype),
                    use_safetensors=True,
                    output_loading_info=True,
                    **self._hub,
                )
            model.to(device)
        except _FAULTS as error:
            reason = first_line(error).rstrip(".")
            raise self._wrong(f"its weights cannot be used on {device} ({reason})") from error
        if missing := sorted(info["missing_keys"]):
            raise self._wrong(f"the weights lack {', '.join(missing[:3])}. Copy or download it again")
        model.config.get_text_config().pad_token_id = self.tokenizer.pad_token_id  # the logit is read before it
        _head_in_float32(model)
        _LOADED[key] = model.eval().requires_grad_(False)
        return model


def _check_kind(path: str, config: Any, trust_remote_code: bool) -> None:
    architectures = list(getattr(config, "architectures", None) or ())
    own_code = trust_remote_code and "AutoModelForSequenceClassification" in (getattr(config, "auto_map", None) or {})
    if not own_code and not any("SequenceClassification" in name for name in architectures):
        raise RewardError(
            f"reward_model: model {path} is no sequence classifier: its config.json names "
            f"{', '.join(architectures) or 'no architecture'}. Give one that was trained as a reward model."
        )
    if config.num_labels != 1:
        raise RewardError(
            f"reward_model: model {path} has {config.num_labels} labels, and a reward model has one. Give another."
        )
    refuse_pickles(path, f"reward_model: model {path}", RewardError)


def _checked_devices(device: str | Sequence[str] | None) -> list[torch.device] | None:
    if device is None:
        return None
    devices = []
    for name in [device] if isinstance(device, str) else device:
        try:
            devices.append(found := torch.device(name))
        except (RuntimeError, TypeError) as error:
            raise RewardError(f"device must be like cuda:1 or cpu, or a list of such, found {device!r}.") from error
        count = torch.cuda.device_count()
        if found.type == "cuda" and count and (found.index or 0) >= count:
            raise RewardError(f"device {name}: this machine has {count} of them, counted from 0.")
    if not devices:
        raise RewardError("device must be like cuda:1 or cpu, or a list of such, found an empty list.")
    return devices


def _device(devices: Sequence[torch.device] | None) -> torch.device:
    """The device of this process: its own among several, or the one that it computes on."""
    if devices is not None:
        return devices[int(os.environ.get("LOCAL_RANK", "0")) % len(devices)]
    if PartialState._shared_state:  # making one here would settle the device of a training that begins later
        return PartialState().device
    return torch.accelerator.current_accelerator() or torch.device("cpu")


@contextlib.contextmanager
def _all_weights() -> Iterator[None]:
    """Every process reads the weights: under FSDP transformers leaves that to the first, and waits for sharding."""
    name = "FSDP_CPU_RAM_EFFICIENT_LOADING"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def _head_in_float32(model: torch.nn.Module) -> None:
    """The last layer in float32: logits in bfloat16 have three digits, and replies of about one quality are ties."""
    head = getattr(model, "score", None) or getattr(model, "classifier", None)
    if isinstance(head, torch.nn.Module):
        head.float()
        head.register_forward_pre_hook(lambda _, inputs: tuple(part.float() for part in inputs))
