"""The forward pass of the Llama architecture with fused projections, for the models that nearly everybody serves.

At batch size 1 a small model spends most of its time between operations. This pass computes what transformers computes, from the same
weights (the model's own parameters become views of the fused ones), in about half as many operations. Models it does not know run
through transformers' own forward.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from dispatch_rl.decoding.cache import AnyCache, StackedCache, StaticPlace
from dispatch_rl.decoding.projections import Linear, Norm, choose_order, fuse
from dispatch_rl.kernels.rotate_and_store import HeadNorms

_ARCHITECTURES = {"LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
_ROPE_TYPES = {"default", "linear", "llama3", "yarn"}
"""Rotary embeddings whose angles depend on the position alone."""


@dataclass(frozen=True)
class _Layer:
    attention_norm: Norm
    qkv: Linear
    q_norm: Norm | None
    k_norm: Norm | None
    head_norms: HeadNorms | None
    """Both of these in one, for the static pass."""
    out: Linear
    mlp_norm: Norm
    gate_up: Linear
    down: Linear

    @property
    def linears(self) -> tuple[Linear, ...]:
        return self.qkv, self.out, self.gate_up, self.down


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


def attend(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Return the attention's values ``[texts, heads, new, head_dim]``.

    Args:
        q: Queries ``[texts, heads, new, head_dim]``.
        keys: Keys ``[texts, kv_heads, context, head_dim]``, each for as many heads in a row as come to it.
        values: Values, alike.
        mask: What is added to the scores, once for every head of a group ``[texts or 1, 1, heads / kv_heads * new, context]``.
        causal: No token sees those behind it; there is no mask then.
    """
    if mask is None:
        return F.scaled_dot_product_attention(q, keys, values, is_causal=causal, enable_gqa=q.shape[1] != keys.shape[1])
    # On a GPU nothing but torch's plain attention, which copies keys and values, takes both groups and a mask; heads of a group that
    # are rows of one head, it need not.
    rows = q.reshape(len(q), keys.shape[1], -1, q.shape[-1])
    return F.scaled_dot_product_attention(rows, keys, values, attn_mask=mask).view(q.shape)


class FusedForward:
    """Reads tokens into a :class:`StackedCache` and returns logits, as the wrapped model would."""

    def __init__(self, model: PreTrainedModel) -> None:
        config: Any = model.config
        body: Any = model.model
        self._heads: int = config.num_attention_heads
        self._kv_heads: int = config.num_key_value_heads
        self._head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._embedding: Tensor = body.embed_tokens.weight
        self._layers = [_layer(layer, config.rms_norm_eps) for layer in body.layers]
        self._norm = Norm(body.norm.weight, config.rms_norm_eps)
        self._head = Linear(model.get_output_embeddings().weight, None)
        choose_order([part for layer in self._layers for part in layer.linears] + [self._head])
        self._rotary = body.rotary_emb
        self._cos = self._sin = torch.empty(0, 0)

    def new_cache(self) -> StackedCache:
        """Return an empty cache."""
        return StackedCache(len(self._layers), self._kv_heads, self._head_dim, self._embedding)

    def reserve(self, capacity: int) -> None:
        """Prepare the rotary angles of ``capacity`` positions."""
        if capacity <= len(self._cos):
            return
        positions = torch.arange(capacity, device=self._embedding.device)
        cos, sin = self._rotary(self._embedding[:1], positions[None])
        half = self._head_dim // 2
        sin[..., :half].neg_()
        self._cos, self._sin = cos[0, :, None].clone(), sin[0, :, None].clone()

    def __call__(self, tokens: Tensor, cache: AnyCache, mask: Tensor | None, rows: int | None, positions: Tensor | None = None) -> Tensor:
        """Return the logits ``[rows, vocab]`` of the last ``rows`` of ``tokens [tokens]``; ``positions`` if they are not in a row."""
        past, new = cache.length, len(tokens)
        where = slice(past, past + new) if positions is None else positions
        angles = self._cos[where], self._sin[where]
        return self._run(tokens[None], angles, cache, mask, past == 0 and new > 1, rows)[0]

    def batch(self, tokens: Tensor, positions: Tensor, cache: AnyCache | None, mask: Tensor, rows: int) -> Tensor:
        """Return the logits ``[texts, rows, vocab]`` of the last ``rows`` of ``tokens [texts, tokens]``, which need not be cached."""
        angles = self._cos[positions], self._sin[positions]
        return self._run(tokens, angles, cache, mask, False, rows)

    @property
    def angles(self) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines of what was reserved ``[positions, 1, head_dim]``; more are made elsewhere."""
        return self._cos, self._sin

    def static(self, tokens: Tensor, angles: tuple[Tensor, Tensor], places: Sequence[StaticPlace], row: Tensor | None = None) -> Tensor:
        """Read ``tokens [tokens]`` without the host knowing where: a captured graph does the same wherever its inputs say.

        Args:
            tokens: Token ids.
            angles: Cosines and signed sines of the tokens' positions ``[tokens, 1, head_dim]``.
            places: Every layer's.
            row: Return the logits of this row alone ``[1]``; None means all.

        Returns:
            Logits ``[rows, vocab]``.
        """
        x = self._embedding.index_select(0, tokens)
        for layer, place in zip(self._layers, places, strict=True):
            qkv = layer.qkv(layer.attention_norm(x)).view(len(tokens), -1, self._head_dim)
            mixed = place.attend(qkv, angles, layer.head_norms).reshape(len(tokens), -1)
            if layer is self._layers[-1] and row is not None:
                x, mixed = x.index_select(0, row), mixed.index_select(0, row)
            layer.out.add_to(x, mixed)
            layer.down.add_to(x, place.operations.swiglu(layer.gate_up(layer.mlp_norm(x))))
        return self._head(self._norm(x))

    def _run(
        self,
        tokens: Tensor,
        angles: tuple[Tensor, Tensor],
        cache: AnyCache | None,
        mask: Tensor | None,
        causal: bool,
        rows: int | None,
    ) -> Tensor:
        texts, new = tokens.shape
        mask = None if mask is None else self._additive(mask)
        x = self._embedding.index_select(0, tokens.flatten())
        assert cache is None or isinstance(cache, StackedCache)
        places = [None] * len(self._layers) if cache is None else cache.extend(texts, new)
        for layer, place in zip(self._layers, places, strict=True):
            qkv = layer.qkv(layer.attention_norm(x)).view(texts, new, -1, self._head_dim)
            self._turn(qkv, layer, *angles)
            q, kv = qkv.transpose(1, 2).split([self._heads, 2 * self._kv_heads], dim=1)
            if place is None:
                keys, values = kv.chunk(2, dim=1)
            else:
                place.fresh.copy_(kv)
                _, keys, values = place
            mixed = attend(q, keys, values, mask, causal)
            mixed = mixed.transpose(1, 2).reshape(texts * new, -1)
            if layer is self._layers[-1] and rows is not None and rows < new:
                x, mixed = (part.view(texts, new, -1)[:, -rows:].flatten(0, 1) for part in (x, mixed))
            layer.out.add_to(x, mixed)
            gate, up = layer.gate_up(layer.mlp_norm(x)).chunk(2, dim=-1)
            layer.down.add_to(x, F.silu(gate).mul_(up))
        logits = self._head(self._norm(x))
        return logits.view(texts, -1, logits.shape[-1])

    def _turn(self, qkv: Tensor, layer: _Layer, cos: Tensor, sin: Tensor) -> None:
        """Normalise queries and keys ``[texts, tokens, heads, head_dim]`` if the model does, and turn them by their positions' angles.

        Every pair ``(x_i, x_{i + head_dim / 2})`` is turned; ``sin`` has the sign with which the other of the pair enters.
        """
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = qkv.narrow(2, 0, self._heads), qkv.narrow(2, self._heads, self._kv_heads)
            q.copy_(layer.q_norm(q))
            k.copy_(layer.k_norm(k))
        qk = qkv.narrow(2, 0, self._heads + self._kv_heads)
        others = qk.roll(self._head_dim // 2, -1)
        qk.mul_(cos).addcmul_(others, sin)

    def _additive(self, mask: Tensor) -> Tensor:
        """Return what :func:`attend` adds to the scores; given a ``mask`` of truths, every layer would make it anew."""
        added = torch.zeros(mask.shape, dtype=self._embedding.dtype, device=mask.device).masked_fill_(~mask, -torch.inf)
        return added.repeat(1, 1, self._heads // self._kv_heads, 1)


def _layer(layer: Any, eps: float) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    normed = hasattr(attention, "q_norm")
    return _Layer(
        attention_norm=Norm(layer.input_layernorm.weight, eps),
        qkv=fuse([attention.q_proj, attention.k_proj, attention.v_proj]),
        q_norm=Norm(attention.q_norm.weight, eps) if normed else None,
        k_norm=Norm(attention.k_norm.weight, eps) if normed else None,
        head_norms=HeadNorms(attention.q_norm.weight.data, attention.k_norm.weight.data, eps) if normed else None,
        out=Linear(attention.o_proj.weight, attention.o_proj.bias),
        mlp_norm=Norm(layer.post_attention_layernorm.weight, eps),
        gate_up=fuse([mlp.gate_proj, mlp.up_proj]),
        down=Linear(mlp.down_proj.weight, mlp.down_proj.bias),
    )
