"""The forward pass of the Llama architecture with fused projections, for the models that nearly everybody serves.

At batch size 1 a small model spends most of its time between operations. This pass computes what transformers computes, from the same
weights (the model's own parameters become views of the fused ones), in about half as many operations. Models it does not know run
through transformers' own forward.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from dispatch_rl.decoding.cache import RollbackCache

_ARCHITECTURES = {"LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
_ROPE_TYPES = {"default", "linear", "llama3", "yarn"}
"""Rotary embeddings whose angles depend on the position alone."""


@dataclass(frozen=True)
class _LayerWeights:
    attention_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: Tensor
    out_bias: Tensor | None
    mlp_norm: Tensor
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


def is_supported(model: PreTrainedModel) -> bool:
    """Whether ``model`` is a plain model of the architecture: full attention, SiLU, unquantised, one device, angles by position."""
    config: Any = model.config
    if type(model).__name__ not in _ARCHITECTURES or config.hidden_act != "silu":
        return False
    if set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
        return False
    if (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default") not in _ROPE_TYPES:
        return False
    if len({p.device for p in model.parameters()}) > 1:
        return False
    linears = [module for name, module in model.named_modules() if name.endswith("_proj") or name == "lm_head"]
    # torchao's quantised weights call themselves floating point, but are no plain parameters.
    return all(
        type(module) is nn.Linear and type(module.weight) is nn.Parameter and module.weight.is_floating_point() for module in linears
    )


class FusedForward:
    """Reads tokens into a :class:`RollbackCache` and returns logits, as the wrapped model would."""

    def __init__(self, model: PreTrainedModel) -> None:
        config: Any = model.config
        body: Any = model.model
        self._heads: int = config.num_attention_heads
        self._kv_heads: int = config.num_key_value_heads
        self._head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._eps: float = config.rms_norm_eps
        self._embedding: Tensor = body.embed_tokens.weight
        self._layers = [_layer_weights(layer) for layer in body.layers]
        self._norm: Tensor = body.norm.weight
        self._head: Tensor = model.get_output_embeddings().weight
        self._rotary = body.rotary_emb
        self._cos = self._sin = torch.empty(0, 0)

    def reserve(self, capacity: int) -> None:
        """Prepare the rotary angles of ``capacity`` positions."""
        if capacity <= len(self._cos):
            return
        positions = torch.arange(capacity, device=self._embedding.device)
        cos, sin = self._rotary(self._embedding[:1], positions[None])
        self._cos, self._sin = cos[0].clone(), sin[0].clone()

    def __call__(
        self, tokens: Tensor, cache: RollbackCache, mask: Tensor | None, rows: int | None, positions: Tensor | None = None
    ) -> Tensor:
        """Return the logits ``[rows, vocab]`` of the last ``rows`` of ``tokens [tokens]``; ``positions`` if they are not in a row."""
        past, new = cache.length, len(tokens)
        where = slice(past, past + new) if positions is None else positions
        angles = self._cos[where][:, None], self._sin[where][:, None]
        return self._run(tokens[None], angles, cache, mask, past == 0 and new > 1, rows)[0]

    def batch(self, tokens: Tensor, positions: Tensor, cache: RollbackCache | None, mask: Tensor, rows: int) -> Tensor:
        """Return the logits ``[texts, rows, vocab]`` of the last ``rows`` of ``tokens [texts, tokens]``, which need not be cached."""
        angles = self._cos[positions][:, :, None], self._sin[positions][:, :, None]
        return self._run(tokens, angles, cache, mask, False, rows)

    def _run(
        self,
        tokens: Tensor,
        angles: tuple[Tensor, Tensor],
        cache: RollbackCache | None,
        mask: Tensor | None,
        causal: bool,
        rows: int | None,
    ) -> Tensor:
        texts, new = tokens.shape
        grouped = self._heads != self._kv_heads
        x = F.embedding(tokens, self._embedding)
        for index, layer in enumerate(self._layers):
            normed = F.rms_norm(x, x.shape[-1:], layer.attention_norm, self._eps)
            qk, v = self._project(normed, layer)
            q, k = self._rotate(qk, *angles).transpose(1, 2).split([self._heads, self._kv_heads], dim=1)
            v = v.transpose(1, 2)
            keys, values = (k, v) if cache is None else cache.update(k, v, index)
            mixed = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, is_causal=causal, enable_gqa=grouped)
            x = x + F.linear(mixed.transpose(1, 2).reshape(texts, new, -1), layer.out, layer.out_bias)
            normed = F.rms_norm(x, x.shape[-1:], layer.mlp_norm, self._eps)
            gate, up = F.linear(normed, layer.gate_up, layer.gate_up_bias).chunk(2, dim=-1)
            x = x + F.linear(F.silu(gate).mul_(up), layer.down, layer.down_bias)
        kept = x if rows is None else x[:, -rows:]
        return F.linear(F.rms_norm(kept, x.shape[-1:], self._norm, self._eps), self._head)

    def _project(self, x: Tensor, layer: _LayerWeights) -> tuple[Tensor, Tensor]:
        """Return queries and keys ``[texts, tokens, heads + kv_heads, head_dim]`` and values ``[texts, tokens, kv_heads, head_dim]``."""
        qkv = F.linear(x, layer.qkv, layer.qkv_bias).view(*x.shape[:2], -1, self._head_dim)
        qk, v = qkv.split([self._heads + self._kv_heads, self._kv_heads], dim=2)
        if layer.q_norm is not None:
            q, k = qk.split([self._heads, self._kv_heads], dim=2)
            q = F.rms_norm(q, q.shape[-1:], layer.q_norm, self._eps)
            qk = torch.cat([q, F.rms_norm(k, k.shape[-1:], layer.k_norm, self._eps)], dim=2)
        return qk, v

    def _rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Turn every pair ``(x_i, x_{i + head_dim / 2})`` by its position's angle."""
        first, second = x.chunk(2, dim=-1)
        return torch.addcmul(x * cos, torch.cat([-second, first], dim=-1), sin)


def _layer_weights(layer: Any) -> _LayerWeights:
    attention, mlp = layer.self_attn, layer.mlp
    qkv, qkv_bias = _fuse([attention.q_proj, attention.k_proj, attention.v_proj])
    gate_up, gate_up_bias = _fuse([mlp.gate_proj, mlp.up_proj])
    return _LayerWeights(
        attention_norm=layer.input_layernorm.weight,
        qkv=qkv,
        qkv_bias=qkv_bias,
        q_norm=attention.q_norm.weight if hasattr(attention, "q_norm") else None,
        k_norm=attention.k_norm.weight if hasattr(attention, "k_norm") else None,
        out=attention.o_proj.weight,
        out_bias=attention.o_proj.bias,
        mlp_norm=layer.post_attention_layernorm.weight,
        gate_up=gate_up,
        gate_up_bias=gate_up_bias,
        down=mlp.down_proj.weight,
        down_bias=mlp.down_proj.bias,
    )


def _fuse(linears: list[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """Stack the weights of ``linears``, which from then on are views of the stack: nothing is held twice."""
    stacked: list[Tensor | None] = []
    for name in ("weight", "bias"):
        parts = [getattr(linear, name) for linear in linears]
        if parts[0] is None:
            stacked.append(None)
            continue
        whole = torch.cat([part.data for part in parts])
        for part, view in zip(parts, whole.split([len(part) for part in parts]), strict=True):
            part.data = view
        stacked.append(whole)
    weight, bias = stacked
    assert weight is not None
    return weight, bias
