"""The fused forward pass computes what transformers computes, for every architecture it claims."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from dispatch_rl.decoding.fused import is_supported
from dispatch_rl.decoding.models import CachedModel

SHAPE: Any = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 48, "num_attention_heads": 4}
LLAMA3_ROPE: Any = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def models() -> dict[str, PreTrainedModel]:
    """Return random models: grouped and full attention, tied and untied heads, biases, query norms, scaled angles."""
    torch.manual_seed(0)
    spread: Any = {"initializer_range": 0.3, "max_position_embeddings": 64}
    return {
        "qwen2": Qwen2ForCausalLM(Qwen2Config(**SHAPE, num_key_value_heads=2, **spread)),
        "qwen2-tied": Qwen2ForCausalLM(Qwen2Config(**SHAPE, num_key_value_heads=4, tie_word_embeddings=True, **spread)),
        "llama": LlamaForCausalLM(LlamaConfig(**SHAPE, num_key_value_heads=1, **spread)),
        "llama-biases": LlamaForCausalLM(
            LlamaConfig(**SHAPE, num_key_value_heads=4, attention_bias=True, mlp_bias=True, rope_parameters=LLAMA3_ROPE, **spread)
        ),
        "qwen3": Qwen3ForCausalLM(Qwen3Config(**SHAPE, num_key_value_heads=2, head_dim=16, **spread)),
    }


@pytest.mark.parametrize("name", list(models()))
def test_fused_logits_are_those_of_transformers(name: str) -> None:
    """Prefill, single tokens, drafts of several and roll-backs, against one pass of the untouched model without a cache."""
    model = models()[name].eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, 1.0 if p.ndim == 1 else 0.0, 0.3)
    tokens = torch.randint(0, 97, (40,), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = model(tokens[None], use_cache=False).logits[0]
    assert is_supported(model)
    cached = CachedModel(model, vocab=90)
    cached.start(64)
    seen = [cached.forward(tokens[:11])]
    for begin, end in ((11, 12), (12, 17), (17, 18), (18, 40)):
        cached.forward(torch.zeros(5, dtype=torch.long), rows=1)
        cached.roll_back(begin)
        last = cached.forward(tokens[begin:end], rows=1)
        cached.roll_back(begin)
        seen.append(cached.forward(tokens[begin:end]))
        torch.testing.assert_close(last, seen[-1][-1:], atol=2e-4, rtol=2e-4)
    # Both are float32; float64 on both sides would agree to 1e-12, so this is rounding over three layers.
    torch.testing.assert_close(torch.cat(seen), expected[:, :90], atol=2e-4, rtol=2e-4)


def test_fusing_holds_no_weight_twice_and_leaves_the_model_as_it_was() -> None:
    """The model's own projections are views of the fused ones, and its own forward gives the same logits as before."""
    model = models()["qwen2"].eval()
    tokens = torch.arange(12)[None]
    with torch.inference_mode():
        before = model(tokens).logits
        CachedModel(model, vocab=97)
        torch.testing.assert_close(model(tokens).logits, before, rtol=0, atol=0)
    attention = model.get_submodule("model.layers.0.self_attn")
    storages = {attention.get_parameter(f"{name}_proj.weight").untyped_storage().data_ptr() for name in "qkv"}
    assert len(storages) == 1


def test_other_models_run_through_transformers() -> None:
    """Sliding windows, other activations and angles that change with the length are left to transformers."""
    torch.manual_seed(0)
    sliding = Qwen2Config(**SHAPE, num_key_value_heads=2, use_sliding_window=True, sliding_window=8, max_window_layers=1)
    gelu = LlamaConfig(**SHAPE, num_key_value_heads=2, hidden_act="gelu")
    dynamic = LlamaConfig(**SHAPE, num_key_value_heads=2, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    assert not is_supported(Qwen2ForCausalLM(sliding))
    assert not is_supported(LlamaForCausalLM(gelu))
    assert not is_supported(LlamaForCausalLM(dynamic))
    model = LlamaForCausalLM(gelu).eval()
    cached = CachedModel(model, vocab=97)
    cached.start(16)
    tokens = torch.arange(8)
    with torch.inference_mode():
        expected = model(tokens[None], use_cache=False).logits[0]
    seen = torch.cat([cached.forward(tokens[:5]), cached.forward(tokens[5:])])
    torch.testing.assert_close(seen, expected, atol=1e-5, rtol=1e-5)
