"""A tokenizer without a model, and folders with small data."""

import json

import jinja2
import pytest

CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


class CharacterTokenizer:
    """One token per character, one more in front of plain text, and a chat template if it is given one."""

    def __init__(self, chat_template=None):
        self.chat_template = chat_template

    def __call__(self, texts, add_special_tokens=True):
        return {"input_ids": [[0] * (len(text) + add_special_tokens) for text in texts]}

    def apply_chat_template(self, messages, add_generation_prompt, tokenize):
        assert add_generation_prompt
        assert not tokenize
        environment = jinja2.Environment()
        environment.globals["raise_exception"] = _refuse
        return environment.from_string(self.chat_template).render(messages=messages)


def _refuse(message):
    raise jinja2.TemplateError(message)


@pytest.fixture
def tokenizer():
    return CharacterTokenizer()


@pytest.fixture
def chat_tokenizer():
    return CharacterTokenizer(CHAT)


@pytest.fixture
def jsonl(tmp_path):
    def write(rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write
