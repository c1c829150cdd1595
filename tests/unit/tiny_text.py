"""A byte-level tokenizer and a two-layer Llama, made on the spot: text tests need no download."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END = 256


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte of ASCII text, and the end-of-text token 256."""
    alphabet = {character: number for number, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab={**alphabet, "<end>": END}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>")


def llama_config(**changes: Any) -> LlamaConfig:
    """A Llama of two layers and 16 hidden units over the bytes."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"num_key_value_heads": 1, "vocab_size": 257, "tie_word_embeddings": True}
    ids = {"bos_token_id": None, "eos_token_id": END, "pad_token_id": END}
    return LlamaConfig(**{**sizes, **special, **ids, **changes})


def save_tiny_llama(folder: Path, **changes: Any) -> Path:
    """Save the model and its tokenizer to ``folder``."""
    torch.manual_seed(0)
    LlamaForCausalLM(llama_config(**changes)).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write one JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
