"""The tokenizer that a GGUF file describes: vocabulary, merges, and the rule its name stands for.

transformers has no rule for some names and falls back to GPT-2's without a word, so that digits and
line breaks become tokens the model has never seen. Here an unknown name is refused.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from rag_memtok.errors import InputRefused

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CONTROL, USER_DEFINED = 3, 4  # llama.cpp's types of tokens
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
EXACT = ("Fan 12,345 lit\n\n1. it's", "  ¿dónde?\t\r\n\u0301x 😀 <|im_end|>")  # have to come back


def gpt2() -> Any:
    """GPT-2's rule: words, numbers and signs apart, with the space before them."""
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def smollm() -> Any:
    """Digits one by one, then GPT-2's rule."""
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2()])


def split_by(pattern: str) -> Callable[[], Any]:
    """A rule that a regular expression says."""
    return lambda: pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


# `tokenizer.ggml.pre` -> the rule, and whether a piece that is a token is taken whole.
RULES: dict[str, tuple[Callable[[], Any], bool]] = {
    "gpt-2": (gpt2, False),
    "smollm": (smollm, False),
    "llama-bpe": (split_by(LLAMA3), True),
    "qwen2": (split_by(QWEN2), False),
}


def build_tokenizer(values: Mapping[str, Any]) -> "PreTrainedTokenizerFast":
    """Makes the tokenizer of a GGUF header's values; it gives every text back.

    Raises:
        InputRefused: a kind or a rule that is not known here, or a vocabulary that contradicts it.
    """
    from transformers import PreTrainedTokenizerFast

    tokens = values["tokenizer.ggml.tokens"]
    rule, whole = _rule(values)
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ", 1)) for merge in values["tokenizer.ggml.merges"]]
    if len(vocabulary) != len(tokens) or any(len(merge) != 2 for merge in merges):
        raise InputRefused("its vocabulary has a token twice, or a merge of one part")
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=whole))
    tokenizer.pre_tokenizer, tokenizer.decoder = rule(), decoders.ByteLevel()
    kinds = list(zip(tokens, values["tokenizer.ggml.token_type"], strict=True))
    for kind, add in (
        (CONTROL, tokenizer.add_special_tokens),
        (USER_DEFINED, tokenizer.add_tokens),
    ):
        added = [
            AddedToken(token, normalized=False) for token, token_kind in kinds if token_kind == kind
        ]
        add(added)
    special = {name: _named(values, tokens, key) for name, key in SPECIAL.items()}
    if values.get("tokenizer.ggml.add_bos_token") and special["bos_token"]:
        bos = (special["bos_token"], vocabulary[special["bos_token"]])
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos[0]} $A", special_tokens=[bos]
        )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **_present(special)
    )
    wrapped.chat_template = values.get("tokenizer.chat_template")
    _require_exact(wrapped)
    return wrapped


SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


def _rule(values: Mapping[str, Any]) -> tuple[Callable[[], Any], bool]:
    kind, name = values.get("tokenizer.ggml.model"), values.get("tokenizer.ggml.pre")
    if kind != "gpt2":
        raise InputRefused(f"its tokenizer is of the kind {kind!a}; 'gpt2' (BPE) is known here")
    if name not in RULES:
        known = ", ".join(RULES)
        raise InputRefused(f"its tokenizer splits by the rule {name!a}; there are {known}")
    return RULES[name]


def _named(values: Mapping[str, Any], tokens: list[str], key: str) -> str | None:
    number = values.get(f"tokenizer.ggml.{key}")
    if number is None:
        return None
    if not isinstance(number, int) or not 0 <= number < len(tokens):
        raise InputRefused(f"its {key} is {number!a}, which is no token")
    return tokens[number]


def _present(special: Mapping[str, str | None]) -> dict[str, str]:
    return {name: token for name, token in special.items() if token is not None}


def _require_exact(tokenizer: "PreTrainedTokenizerFast") -> None:
    for text in EXACT:
        encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if tokenizer.decode(encoded, clean_up_tokenization_spaces=False) != text:
            raise InputRefused("its tokenizer does not give a text back")
