"""Small random families in Hugging Face format, as another project might have saved them."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from dispatch_rl.config import FamilyConfig, ModelSource
from dispatch_rl.pocket.tokenizer import train_tokenizer

VOCAB = 320
TEXTS = ("def add(a, b):\n    return a + b\n", "Problem: 12 + 34 = 46. The sum of the digits is 10.\n")


def tokenizer(vocab: int = VOCAB, texts: tuple[str, ...] = TEXTS) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer with few merges."""
    return train_tokenizer(texts, vocab)


def qwen2(vocab: int, hidden: int, layers: int, seed: int, context: int = 128) -> Qwen2ForCausalLM:
    """Return a random Qwen2 with grouped attention and an untied head; a large spread makes its choices sure."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=vocab,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=2 * hidden,
        max_position_embeddings=context,
        tie_word_embeddings=False,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=0,
    )
    return Qwen2ForCausalLM(config)


def llama(vocab: int, hidden: int, layers: int, seed: int, context: int = 128) -> LlamaForCausalLM:
    """Return a random Llama with tied embeddings."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=2 * hidden,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=0,
    )
    return LlamaForCausalLM(config)


def save_family(folder: Path) -> Path:
    """Write a Llama target with two students, their vocabularies padded to unequal sizes."""
    shared = tokenizer()
    models = {
        "target": llama(VOCAB + 64, 32, 3, seed=1),
        "tiny": qwen2(VOCAB + 8, 16, 1, seed=2),
        "twin": llama(VOCAB + 64, 32, 3, seed=1, context=96),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        shared.save_pretrained(folder / name)
    return folder


def family_config(folder: Path, target: str = "target", students: tuple[str, ...] = ("tiny", "twin")) -> FamilyConfig:
    """Return the configuration of a family in ``folder``."""
    return FamilyConfig(ModelSource(str(folder / target)), {name: ModelSource(str(folder / name)) for name in students})
