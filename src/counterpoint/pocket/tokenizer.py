"""A character tokenizer as plain Hugging Face files, so that ``AutoTokenizer`` reads it without our code."""

from typing import Final

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD: Final = "<pad>"
BOS: Final = "<bos>"
EOS: Final = "<eos>"
UNKNOWN: Final = "<unk>"
ALPHABET: Final = "\n" + "".join(chr(code) for code in range(32, 127))
"""The characters it knows: a line break and printable ASCII."""


def new_tokenizer(longest: int = 128) -> PreTrainedTokenizerFast:
    """The pocket tokenizer: one token a character, 96 characters and four special tokens, padding on the left.

    Nothing is added to a text, so ``decode(encode(text)) == text`` for every text over ``ALPHABET`` that spells no
    special token.

    Args:
        longest: the most tokens the model can read.
    """
    vocabulary = {token: number for number, token in enumerate([PAD, BOS, EOS, UNKNOWN, *ALPHABET])}
    characters = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    characters.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    characters.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=characters,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        padding_side="left",
        model_max_length=longest,
        clean_up_tokenization_spaces=False,
    )
