"""Reward ``reward_model``: a sequence classifier with one label scores a completion, the last reply of a conversation.

    reward: {name: reward_model, options: {model: Skywork/Skywork-Reward-V2-Llama-3.1-8B, device: "cuda:1"}}

The score is the classifier's logit. Unlike other rewards this one needs torch; it is imported when the reward is built,
and the weights are read when the first completion is scored.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

from counterpoint.errors import RewardError
from counterpoint.rewards._base import FAILED, Completion, Reward, Row, message_text
from counterpoint.rewards._regions import final_answer

Conversation = list[dict[str, Any]]


class RewardModelReward(Reward):
    """Scores by a classifier; see the module.

    Arguments:
        model: a folder that ``save_pretrained`` wrote, or a hub id. Only safetensors are read.
        device: where the classifier lies, such as ``cuda:1``; several are given to the processes of a machine in turn.
            None is the device of this process, beside the policy. Every process has a classifier of its own.
        batch_size: conversations at a time.
        max_length: tokens of a conversation, of which longer ones lose their beginning; None is what the classifier can
            read.
        normalize: a trainer of counterpoint divides the deviation of all scores of the domain so far out of them, and
            takes off their mean. Evaluations always give logits, so that they can be compared.
        dtype: of the weights, ``auto`` as they are saved; the logits are float32 in any case.
        closed_thought: a completion without ``</think>`` is an empty reply.
        revision: of a hub id.
        trust_remote_code: runs the code that comes with the model.

    Attributes:
        cut: completions so far whose conversation was longer than ``max_length``.
    """

    sees_prompt: ClassVar[bool] = True

    def __init__(
        self,
        model: str,
        device: str | Sequence[str] | None = None,
        batch_size: int = 16,
        max_length: int | None = None,
        normalize: bool = False,
        dtype: str = "auto",
        closed_thought: bool = False,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        from counterpoint.rewards._classifier import Classifier

        self.__name__ = "reward_model"
        for name, value in (("batch_size", batch_size), ("max_length", 1 if max_length is None else max_length)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise RewardError(f"{name} must be a whole number from 1, found {value!r}.")
        self.normalize, self.closed_thought = normalize, closed_thought
        self._classifier = Classifier(model, device, batch_size, max_length, dtype, revision, trust_remote_code)
        self.max_length = self._classifier.max_length

    def __call__(
        self, completions: Sequence[Completion], prompts: Sequence[Any] | None = None, **columns: Any
    ) -> list[float | None]:
        """The logits of a batch; tells TRL's ``log_metric`` the share of conversations that were cut."""
        if self.normalize and not self.kept and columns.get("trainer_state") is not None:
            raise RewardError(
                "reward_model: normalize keeps statistics with the run, which this trainer does not. Use "
                "DomainGRPOTrainer or counterpoint train, or leave normalize out."
            )
        before = self.cut
        values = super().__call__(completions, prompts, **columns)
        if len(completions) and (log_metric := columns.get("log_metric")) is not None:
            log_metric("reward_cut", (self.cut - before) / len(completions))
        return values

    def prepare(self, row: Row) -> str | Conversation:
        """The prompt, which the classifier's chat template must be able to render."""
        prompt = row.get("prompt")
        if not isinstance(prompt, str | list):
            raise RewardError("reward_model reads the prompt, and there is none. Pass prompts, or a column 'prompt'.")
        if self._classifier.has_template:
            self._classifier.render(conversation(prompt, ""))
        return prompt

    def score_all(self, texts: Sequence[str], prepared: Sequence[str | Conversation]) -> list[float | None]:
        """The logits of a batch, each of equal conversations computed once; ``FAILED`` for one that is no number."""
        answers = [self._classifier.without_marks(final_answer(text, self.closed_thought)) for text in texts]
        encoded = [self._encoded(*pair) for pair in zip(prepared, answers, strict=True)]
        self._count(encoded)
        unique = {one.key: one for one in encoded}
        scores = dict(zip(unique, self._classifier.scores(list(unique.values())), strict=True))
        return [score if math.isfinite(score := scores[one.key]) else FAILED for one in encoded]

    def _encoded(self, prompt: str | Conversation, answer: str) -> Any:
        if self._classifier.has_template:
            return self._classifier.encode_chat(conversation(prompt, answer))
        if isinstance(prompt, list):
            prompt = "".join(f"{message_text(message)}\n" for message in prompt)
        return self._classifier.encode_plain(prompt, answer)

    def _count(self, encoded: Sequence[Any]) -> None:
        cut = sum(one.cut for one in encoded)
        if cut and not self.cut:
            warnings.warn(
                f"reward_model: {cut} of {len(encoded)} conversations are longer than its {self.max_length} tokens and "
                "lost their beginning. More are counted and not told: reward_cut in the metrics and the evaluations.",
                UserWarning,
                stacklevel=3,
            )
        self.cut += cut


def conversation(prompt: str | Conversation, answer: str) -> Conversation:
    """The messages of a prompt with the answer as the last one; a reply that the prompt begins is completed."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [*prompt]
    if messages and messages[-1].get("role") == "assistant":
        begun = messages.pop()
        answer = message_text(begun) + answer
    return [*messages, {"role": "assistant", "content": answer}]
