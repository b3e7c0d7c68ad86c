"""Ten small random families, saved as people save theirs: from a configuration file to lossless text."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen2Config, Qwen3Config

from dispatch_rl import export, train
from dispatch_rl.kernels.noise import gumbel
from dispatch_rl.policies.fixed import FixedPolicy
from dispatch_rl.runtime.decoder import AdaptiveDecoder
from tests.families import TEXTS, tokenizer

WORDS = 300
"""Tokens of the tokenizer; models pad them, each to its own size."""
CHAT = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CONFIGS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@dataclass(frozen=True)
class Shape:
    """A model of a family."""

    architecture: str
    padding: int
    """Rows of its embedding beyond the tokenizer's tokens."""
    tied: bool
    layers: int = 1
    hidden: int = 16
    heads: tuple[int, int] = (4, 2)
    """For queries, and for keys and values."""
    head_dim: int | None = None
    context: int = 96
    sharded: bool = False
    more: dict[str, Any] = field(default_factory=dict)

    def model(self, seed: int) -> PreTrainedModel:
        """Return it with random weights; a large spread makes its choices sure."""
        torch.manual_seed(seed)
        more = {"head_dim": self.head_dim, **self.more} if self.head_dim else self.more
        config = CONFIGS[self.architecture](
            vocab_size=WORDS + self.padding,
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads[0],
            num_key_value_heads=self.heads[1],
            intermediate_size=2 * self.hidden,
            max_position_embeddings=self.context,
            tie_word_embeddings=self.tied,
            initializer_range=0.3,
            bos_token_id=None,
            eos_token_id=0,
            **more,
        )
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
        return model


@dataclass(frozen=True)
class Case:
    """A family, and what is asked of it."""

    target: Shape
    students: dict[str, Shape]
    chat: bool = False
    temperature: float = 0.6


def llama(padding: int, tied: bool, **more: Any) -> Shape:
    return Shape("llama", padding, tied, **more)


def qwen2(padding: int, tied: bool, **more: Any) -> Shape:
    return Shape("qwen2", padding, tied, **more)


def qwen3(padding: int, tied: bool, **more: Any) -> Shape:
    return Shape("qwen3", padding, tied, head_dim=more.pop("head_dim", 8), **more)


CASES = {
    "qwen2, as R1 distills are padded": Case(qwen2(64, False, layers=2), {"a": qwen2(21, False), "b": qwen2(64, False, layers=2)}),
    "llama, tied and untied": Case(llama(20, False, layers=2), {"a": llama(20, True), "b": llama(20, False, layers=2)}, chat=True),
    "qwen3, wide heads": Case(qwen3(36, True, layers=2, head_dim=16), {"a": qwen3(36, True)}),
    "qwen2 students of a llama": Case(llama(84, True, layers=2, sharded=True), {"a": qwen2(4, False), "b": qwen2(12, True)}),
    "all three, the target padded least": Case(qwen3(0, False, layers=2), {"a": llama(84, True), "b": qwen2(20, False)}, chat=True),
    "sharded throughout": Case(
        qwen2(20, True, layers=2, hidden=32, sharded=True), {"a": qwen3(20, False, sharded=True), "b": llama(20, True, sharded=True)}
    ),
    "one head for keys": Case(llama(8, False, layers=2, heads=(4, 1)), {"a": llama(16, False, heads=(2, 1))}, temperature=0.0),
    "as many heads for keys as for queries": Case(qwen2(3, False, heads=(4, 4), layers=2), {"a": qwen3(5, True, heads=(2, 2))}),
    "a student that reads less": Case(llama(20, True, layers=2), {"a": llama(20, True, context=40), "b": qwen2(20, True, context=24)}),
    "scaled angles, four students": Case(
        llama(20, False, layers=2, more={"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 32}}),
        {name: qwen3(20, i % 2 == 0) for i, name in enumerate("abcd")},
        chat=True,
    ),
}
SETTINGS = {
    "draft_length": 3,
    "num_envs": 10,
    "recording": {"train_prompts": 6, "validation_prompts": 2, "test_prompts": 2, "max_draft_length": 3},
    "profiling": {"rounds": 400, "longest_context": 64, "draft_lengths": [1, 3]},
    "ppo": {"total_steps": 1_000, "rollout_steps": 200, "batch_size": 200, "n_epochs": 1, "net_arch": [8]},
    "evaluation": {"prompts": 0},
}


def save(case: Case, folder: Path) -> Path:
    """Write the family, its prompts and its configuration file; return the file."""
    words = tokenizer(WORDS, TEXTS)
    words.chat_template = CHAT if case.chat else None
    for number, (name, shape) in enumerate({"target": case.target, **case.students}.items()):
        # A student of the target's shape is the target itself, so that some drafts stand.
        model = shape.model(seed=0 if shape == case.target else number)
        model.save_pretrained(folder / name, max_shard_size="20KB" if shape.sharded else "1GB")
        words.save_pretrained(folder / name)
        assert (folder / name / "model.safetensors.index.json").exists() == shape.sharded
    rows = [{"a": i, "b": 3 * i + 1, "words": f"number {i} of many"} for i in range(30)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "family": {"target": {"path": str(folder / "target")}, "students": {name: {"path": str(folder / name)} for name in case.students}},
        "sampling": {"temperature": case.temperature},
        "prompts": {
            "source": str(folder / "prompts.jsonl"),
            "template": "Problem: {a} + {b}, {words}\n",
            "chat": case.chat,
            "max_new_tokens": 16,
        },
        "runs": str(folder / "runs"),
        "name": "small",
        "replay": {"cache": str(folder / "traces")},
        **SETTINGS,
    }
    (folder / "family.yaml").write_text(yaml.safe_dump(config))
    return folder / "family.yaml"


@torch.inference_mode()
def written_alone(folder: Path, prompt: list[int], length: int, seed: int | None, common: int) -> list[int]:
    """Return what transformers itself writes with the target, without a student: greedy if there is no seed, else coupled at 0.6."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder / "target")
    if seed is None:
        ids = torch.tensor([prompt])
        beyond = list(range(common, model.config.vocab_size)) or None
        options: dict[str, Any] = {"do_sample": False, "suppress_tokens": beyond, "pad_token_id": 0}
        written: list[int] = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, **options)[0].tolist()
        return written[len(prompt) :]
    tokens = list(prompt)
    while len(tokens) < len(prompt) + length and (len(tokens) == len(prompt) or tokens[-1] != 0):
        logits = model(torch.tensor([tokens])).logits[0, -1:, :common] / 0.6
        noise = gumbel(seed, torch.tensor([len(tokens)]), common)
        tokens.append(int((logits.log_softmax(-1) + noise).argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("name", CASES)
def test_from_a_configuration_to_lossless_text(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Load, record, learn for a thousand rounds, export, decode: the text is what transformers writes with the target alone."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    case, config = CASES[name], save(CASES[name], tmp_path)
    train.main([f"--config={config}"])
    rows = [json.loads(line) for line in (tmp_path / "runs/small/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 1_000
    export.main([f"{tmp_path}/runs/small", f"--output={tmp_path}/bundle"])
    decoder = AdaptiveDecoder.from_bundle(tmp_path / "bundle")
    common = WORDS + min(shape.padding for shape in (case.target, *case.students.values()))
    assert decoder.family.vocab == common
    drafted = 0
    for seed, text in enumerate(("Problem: 1 + 2, a new one\n", "def add(")):
        prompt = decoder.family.encode_message(text) if case.chat else decoder.family.encode(text)
        greedy = tuple(written_alone(tmp_path, prompt, 24, None, common))
        sampled = tuple(written_alone(tmp_path, prompt, 24, seed, common))
        # The exported policy, and every single arm, since a policy may have learned to draft little.
        for policy in (decoder.policy, *map(FixedPolicy, range(len(decoder.arms)))):
            chosen = AdaptiveDecoder(decoder.family, policy, decoder.arms)
            assert chosen.generate(prompt, 24).tokens == greedy
            assert chosen.generate(prompt, 24, temperature=0.6, seed=seed).tokens == sampled
            assert chosen.last is not None
            drafted += chosen.last.metrics["num_accepted_tokens"]
    assert drafted
