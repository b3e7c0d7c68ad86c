"""Models that run through transformers' own forward passes: windows, attention without kernels; and what is refused before it is read."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3NextConfig,
)

from dispatch_rl.config import FamilyConfig, ModelSource
from dispatch_rl.decoding.arms import LOOKUP, Arm
from dispatch_rl.decoding.families import Family, assemble
from dispatch_rl.decoding.fitness import check_architecture, check_numbers
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.decoding.session import DecodingSession
from dispatch_rl.decoding.vocabulary import check_sizes
from dispatch_rl.errors import UserError
from tests.families import VOCAB, tokenizer

SHARED = tokenizer()
WINDOW, NEW = 12, 48
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "gemma2": Gemma2Config(**SIZES, head_dim=8, sliding_window=WINDOW, query_pre_attn_scalar=8),
    "mistral": MistralConfig(**SIZES, sliding_window=WINDOW),
    "qwen2": Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
    "gpt2": GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.3, eos_token_id=None),
}


def family(config: PreTrainedConfig) -> Family:
    """Return a random model with a student that is nearly the same."""
    torch.manual_seed(0)
    target: PreTrainedModel = AutoModelForCausalLM.from_config(deepcopy(config)).eval().requires_grad_(False)
    student = deepcopy(target)
    for weight in student.parameters():
        if weight.ndim > 1:
            weight.add_(torch.randn_like(weight), alpha=0.1 * float(weight.std()))
    models = {"family.target": target, "family.students.near": student}
    made = assemble(FamilyConfig(ModelSource("x"), {"near": ModelSource("y")}), models, SHARED, torch.device("cpu"), [])
    made.eos_token_ids = frozenset()
    return made


@pytest.mark.parametrize("name", CONFIGS)
def test_texts_are_the_targets_own(name: str) -> None:
    """Beyond a window, with drafts, second choices and catch-ups of any length, as ``generate`` writes it."""
    models = family(CONFIGS[name])
    assert models.target.fused is None
    prompt = SHARED("def add(a, b):\n    return a + b\n")["input_ids"]
    target = models.target.model
    alone = target.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=NEW, eos_token_id=-1)  # type: ignore[operator]
    assert len(prompt) + NEW > 2 * WINDOW
    arms = [Arm("near", 1), Arm("near", 6), Arm("near", 6, hedge_below=3.0), Arm(LOOKUP, 4)]
    stood = 0
    for chosen in ([arm] for arm in arms), [arms]:
        for turns in chosen:
            session = DecodingSession(models, prompt, Sampling(), NEW)
            while not session.finished:
                record = session.step(turns[len(session.rounds) % len(turns)])
                stood += record.num_accepted
            assert session.text_tokens == alone[0, len(prompt) :].tolist()
    assert stood > NEW


def test_what_cannot_be_rolled_back_is_refused() -> None:
    """Recurrent layers, and models that tell no length, in one line with their key."""
    with pytest.raises(UserError, match=r"family\.target: qwen3_next has layers of the kind linear_attention, which cannot take back"):
        check_architecture("family.target", Qwen3NextConfig(num_hidden_layers=4))
    with pytest.raises(UserError, match=r"family\.students\.a: bloom does not tell how long a text it reads"):
        check_architecture("family.students.a", BloomConfig())
    for config in CONFIGS.values():
        check_architecture("family.target", config)


@pytest.mark.parametrize("broken", ["family.target", "family.students.near"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_models_without_numbers_are_named(broken: str, value: float) -> None:
    """One weight that is no number; minus infinity at some tokens, as a mask gives them, is none."""
    models = family(CONFIGS["mistral"]).by_key()
    check_numbers(models)
    next(iter(models[broken].model.parameters()))[3, 0] = value
    with pytest.raises(UserError, match=rf"{broken}: its logits are not numbers in float32; bfloat16"):
        check_numbers(models)


def test_a_student_must_know_all_tokens_of_the_target() -> None:
    """Rows of padding may be fewer, tokens may not: the target could not write the last of them."""
    used = len(SHARED)
    check_sizes({"family.target": used + 64, "family.students.a": used}, SHARED)
    check_sizes({"family.target": used - 2, "family.students.a": used - 2}, SHARED)
    with pytest.raises(UserError, match=rf"family\.students\.b: it knows {used - 1} tokens, and the target's tokenizer has {used},"):
        check_sizes({"family.target": used, "family.students.a": used, "family.students.b": used - 1}, SHARED)
