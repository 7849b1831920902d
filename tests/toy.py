"""Toy models built in the test process: 2 layers, d = 128, `initializer_range=0.1`.

With these, 16 random tokens fit into M = 4 in a moment.
"""

import functools
import hashlib

import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from rag_memtok.model import lm
from rag_memtok.model.inject import answer_rows

SPECIAL = (
    "<|end_of_text|>",
    "<|begin_of_text|>",
    "<|pad|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
WIDTH, LAYERS, CONTEXT = 128, 2, 512
SENTENCES = (
    "The lamp of the harbour was repaired in March, and its keeper wrote a letter.",
    "Question: who wrote the letter? Answer from the documents in a few words.",
    "La empanada lleva cebolla, huevo y aceitunas; se hornea media hora.",
    "Repeat the document. If they do not say, answer: not in the documents.",
)
CHAT = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] + "
    "'<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ "
    "'<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


def tokenizer(chat: str | None = CHAT, lossy: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE over a few sentences, about 400 words.

    `lossy` folds capitals, so that only lower-case text comes back.
    """
    rules = Tokenizer(BPE())
    rules.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rules.decoder = decoders.ByteLevel()
    if lossy:
        rules.normalizer = normalizers.Lowercase()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    rules.train_from_iterator(
        SENTENCES * 5,
        BpeTrainer(
            vocab_size=400,
            special_tokens=list(SPECIAL),
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=rules,
        bos_token=SPECIAL[1],
        eos_token=SPECIAL[0],
        pad_token=SPECIAL[2],
        chat_template=chat,
        model_max_length=CONTEXT,
    )


def llama(words: int, seed: int = 0, tied: bool = True) -> LlamaForCausalLM:
    """A random Llama."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=words, hidden_size=WIDTH, intermediate_size=2 * WIDTH,
            num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=CONTEXT, initializer_range=0.1, tie_word_embeddings=tied,
            bos_token_id=1, eos_token_id=0, pad_token_id=2,
        )
    )  # fmt: skip


def cousin(config: type, words: int, seed: int = 0, **more: object) -> PreTrainedModel:
    """A random model of a class whose shape is told as Llama's is."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(
        config(
            vocab_size=words, hidden_size=WIDTH, intermediate_size=2 * WIDTH,
            num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2,
            head_dim=WIDTH // 4, max_position_embeddings=CONTEXT, initializer_range=0.1,
            bos_token_id=1, eos_token_id=0, pad_token_id=2, **more,
        )
    )  # fmt: skip


def gpt2(words: int, seed: int = 0, tied: bool = True) -> GPT2LMHeadModel:
    """A random GPT-2."""
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=words, n_embd=WIDTH, n_layer=LAYERS, n_head=4, n_positions=CONTEXT,
            initializer_range=0.1, bos_token_id=1, eos_token_id=0, pad_token_id=2, resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=tied,
        )
    )  # fmt: skip


MODELS = {
    "llama": llama,
    "llama-untied": functools.partial(llama, tied=False),
    "gpt2": gpt2,
    "gpt2-untied": functools.partial(gpt2, tied=False),
    "mistral-untied": functools.partial(cousin, MistralConfig, sliding_window=16),
    "qwen2": functools.partial(cousin, Qwen2Config, tie_word_embeddings=True),
    "qwen3": functools.partial(cousin, Qwen3Config, tie_word_embeddings=True),
}


def wrap(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, name: str) -> lm.LM:
    """Makes an LM of a model that is in memory already, frozen from here on.

    Its weight hash is over the parameters.
    """
    model.eval().requires_grad_(False)
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode() + value.detach().float().cpu().numpy().tobytes())
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    return lm.LM(
        model,
        tokenizer,
        lm.Identity(
            id=name,
            revision="",
            weights_sha256=digest.hexdigest(),
            tokenizer_sha256=lm._hash_tokenizer(tokenizer),
            dtype=dtype,
        ),
    )


def lm_of(
    kind: str = "llama", seed: int = 0, chat: str | None = CHAT, dtype: torch.dtype = torch.float32
) -> lm.LM:
    """An LM of one of MODELS."""
    words = tokenizer(chat)
    return wrap(MODELS[kind](len(words), seed=seed).to(dtype), words, f"toy-{kind}")


def save(folder, seed: int = 0, chat: str | None = CHAT, lossy: bool = False, kind: str = "llama"):
    """Writes a model folder as transformers does."""
    words = tokenizer(chat, lossy)
    MODELS[kind](len(words), seed=seed).save_pretrained(folder, safe_serialization=True)
    words.save_pretrained(folder)
    return folder


def answer_tokens(model, frame, prompt, limit):
    """The greedy answer to one prompt, a token at a time, at most `limit`."""
    return (token for _, token in answer_rows(model, frame, [prompt], limit))
