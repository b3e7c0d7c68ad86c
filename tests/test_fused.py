"""The fused forward pass computes what transformers computes, for every architecture it claims, and its static form what it computes."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from dispatch_rl.decoding.cache import StackedCache
from dispatch_rl.decoding.fused import attend, is_supported
from dispatch_rl.decoding.models import CachedModel
from dispatch_rl.decoding.static import StaticPasses, Told
from dispatch_rl.kernels.operations import REFERENCES, Operations, kernels
from tests.helpers import DEVICE

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


def static_passes(model: PreTrainedModel, operations: Operations, judges: bool = True) -> StaticPasses:
    """Return the static passes of a model over a cache of its own, which is NaN."""
    cached = CachedModel(model, vocab=97)
    cached.start(64)
    assert cached.fused is not None
    assert isinstance(cached.cache, StackedCache)
    cached.cache.allocate().fill_(torch.nan)
    return StaticPasses(cached.fused, cached.cache, 97, operations, judges)


@pytest.mark.parametrize(("name", "compiled"), [*((name, False) for name in models()), ("qwen2", True), ("qwen3", True)])
@torch.inference_mode()
def test_the_static_pass_is_the_eager_one(name: str, compiled: bool) -> None:
    """Logits, keys and values of a prompt, single tokens, a draft and second choices, and nothing is written behind them.

    Attention is the reference's each time; it has tests of its own, and takes the interpreter long.
    """
    model = models()[name].eval().to(DEVICE if compiled else "cpu")
    for p in model.parameters():
        torch.nn.init.normal_(p, 1.0 if p.ndim == 1 else 0.0, 0.3)
    passes = static_passes(model, replace(kernels(), attention=REFERENCES.attention) if compiled else REFERENCES)
    eager = CachedModel(model, vocab=97)
    eager.start(64)
    assert isinstance(eager.cache, StackedCache)
    tokens = torch.arange(3, 23)
    for begin, end, beside in ((0, 4, []), (4, 5, []), (5, 8, []), (8, 13, [1, 2])):
        passes.inputs.write(begin, Told(), tokens[begin:end].tolist(), (), beside)
        passes.read(end - begin)
        expected = eager.eager(tokens[begin:end], beside=beside)
        torch.testing.assert_close(passes.logits[: end - begin].to(expected), expected, atol=2e-4, rtol=2e-4)
        assert eager.cache.buffer is not None
        torch.testing.assert_close(passes.buffer[..., :end, :], eager.cache.buffer[..., :end, :], atol=2e-4, rtol=2e-4)
        assert passes.buffer[..., end:, :].isnan().all()


class Launches(TorchDispatchMode):
    """Counts what torch would launch: all but views."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.is_mutable or any(result.alias_info is None for result in func._schema.returns):
            self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **kwargs or {})


@torch.inference_mode()
def launches(name: str, layers: int) -> Counter[str]:
    """Return what a static pass of one token launches in a model of so many layers in bfloat16; operations count by their names."""
    model = type(models()[name])
    config = models()[name].config
    config.num_hidden_layers, config.layer_types = layers, ["full_attention"] * layers
    counting = Launches()

    def rotate_and_store(qkv: Tensor, cos: Tensor, sin: Tensor, buffer: Tensor, *_: Any) -> Tensor:
        counting.counts["rotate_and_store"] += 1
        return qkv[:, : qkv.shape[1] - len(buffer)]

    def attention(q: Tensor, *_: Any) -> Tensor:
        counting.counts["attention"] += 1
        return q

    def swiglu(gate_up: Tensor) -> Tensor:
        counting.counts["swiglu"] += 1
        return gate_up.chunk(2, dim=-1)[0]

    operations = replace(REFERENCES, rotate_and_store=rotate_and_store, attention=attention, swiglu=swiglu)
    passes = static_passes(model(config).bfloat16().eval(), operations, judges=False)
    passes.inputs.write(0, Told(), [3])
    with counting:
        passes.read(1)
    return counting.counts


@pytest.mark.parametrize(("name", "first"), [("qwen2", "addmm"), ("qwen3", "mm"), ("llama", "mm")])
def test_a_layer_of_the_static_pass_launches_what_the_kernels_page_says(name: str, first: str) -> None:
    """Four products, which add biases and residuals, two norms, and three operations, of which attention is two kernels: ten."""
    one_layer = launches(name, 3) - launches(name, 2)
    assert one_layer == Counter([first, "mm", "addmm_", "addmm_", "rms_norm", "rms_norm", "rotate_and_store", "attention", "swiglu"])


@pytest.mark.parametrize("texts", [1, 3])
def test_a_mask_and_groups_need_no_copy_of_keys_and_values(texts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads of a group become rows: the attention is that of torch's own groups, which a GPU has no fast kernel for under a mask."""
    generator = torch.Generator().manual_seed(texts)
    q, keys, values = (torch.randn(texts, heads, size, 16, generator=generator) for heads, size in ((6, 5), (2, 12), (2, 12)))
    seen = torch.rand(texts, 1, 5, 12, generator=generator) < 0.6
    mask = torch.zeros(texts, 1, 5, 12).masked_fill_(~(seen | (torch.arange(12) == 0)), -torch.inf)
    expected = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, enable_gqa=True)
    by_torch, asked = F.scaled_dot_product_attention, []

    def recorded(*arguments: Any, **options: Any) -> Tensor:
        asked.append(options)
        return by_torch(*arguments, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", recorded)
    torch.testing.assert_close(
        attend(q.transpose(1, 2).contiguous().transpose(1, 2), keys, values, mask.repeat(1, 1, 3, 1), False), expected
    )
    assert [options.get("enable_gqa", False) for options in asked] == [False]
