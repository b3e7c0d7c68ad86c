"""Architectures of models that families are often made of, for machines that cannot ask the hub for their ``config.json``."""

from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig, PreTrainedConfig


@dataclass(frozen=True)
class _Shape:
    """What a ``config.json`` says, as far as it shapes the weights and the forward pass."""

    kind: str
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    rope: dict[str, Any]
    eps: float
    context: int = 131_072
    head_dim: int = 128
    tied: bool = False

    def config(self) -> PreTrainedConfig:
        return AutoConfig.for_model(
            self.kind,
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim,
            vocab_size=self.vocab,
            rope_parameters=dict(self.rope),
            rms_norm_eps=self.eps,
            max_position_embeddings=self.context,
            tie_word_embeddings=self.tied,
        )


def _rope(theta: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta}


def _llama3_rope(factor: float) -> dict[str, Any]:
    lengths = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    return {"rope_type": "llama3", "rope_theta": 5e5, "factor": factor, **lengths}


def _qwen2(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocab: int, theta: float, eps: float) -> _Shape:
    return _Shape("qwen2", hidden, inner, layers, heads, kv_heads, vocab, _rope(theta), eps)


def _qwen3(hidden: int, inner: int, layers: int, heads: int, tied: bool = False) -> _Shape:
    return _Shape("qwen3", hidden, inner, layers, heads, 8, 151_936, _rope(1e6), 1e-6, context=40_960, tied=tied)


def _llama3(hidden: int, inner: int, layers: int, heads: int, factor: float = 8.0, head_dim: int = 128, tied: bool = False) -> _Shape:
    return _Shape("llama", hidden, inner, layers, heads, 8, 128_256, _llama3_rope(factor), 1e-5, head_dim=head_dim, tied=tied)


_SHAPES = {
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": _qwen2(1536, 8960, 28, 12, 2, 151_936, 1e4, 1e-6),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": _qwen2(3584, 18_944, 28, 28, 4, 152_064, 1e4, 1e-6),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B": _qwen2(5120, 13_824, 48, 40, 8, 152_064, 1e6, 1e-5),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B": _qwen2(5120, 27_648, 64, 40, 8, 152_064, 1e6, 1e-5),
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": _llama3(4096, 14_336, 32, 32),
    "deepseek-ai/DeepSeek-R1-Distill-Llama-70B": _llama3(8192, 28_672, 80, 64),
    "meta-llama/Llama-3.2-1B-Instruct": _llama3(2048, 8192, 16, 32, factor=32.0, head_dim=64, tied=True),
    "Qwen/Qwen3-0.6B": _qwen3(1024, 3072, 28, 16, tied=True),
    "Qwen/Qwen3-1.7B": _qwen3(2048, 6144, 28, 16, tied=True),
    "Qwen/Qwen3-4B": _qwen3(2560, 9728, 36, 32, tied=True),
    "Qwen/Qwen3-8B": _qwen3(4096, 12_288, 36, 32),
    "Qwen/Qwen3-14B": _qwen3(5120, 17_408, 40, 40),
    "Qwen/Qwen3-32B": _qwen3(5120, 25_600, 64, 64),
}


def known_config(path: str) -> PreTrainedConfig | None:
    """Return the configuration of a model of the hub; None if it is not among those that are known here."""
    return _SHAPES[path].config() if path in _SHAPES else None
