"""Loading a family: what is wrong is found before a weight is read, and told in one line; a hub out of reach costs no time."""

import json
import shutil
import socket
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import huggingface_hub
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel
from transformers import LlamaConfig, PreTrainedTokenizerFast

from dispatch_rl import cli
from dispatch_rl.config import FamilyConfig, ModelSource, TrainConfig
from dispatch_rl.decoding import loading
from dispatch_rl.decoding.families import Family, load_family
from dispatch_rl.decoding.memory import _weight_bytes
from dispatch_rl.errors import UserError
from dispatch_rl.record import main as record
from tests.families import VOCAB, family_config, llama, tokenizer

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def refusal(config: FamilyConfig) -> str:
    """Return what a user is told about a family that cannot be loaded."""
    with pytest.raises(UserError) as caught:
        load_family(config)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def imitation(words: int, *special: str) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer with as many tokens as a well-known one, and its special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate([*alphabet, *(f"filling{i}" for i in range(words - len(alphabet)))])}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), ByteLevel()
    made.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=special[0], clean_up_tokenization_spaces=False)


def test_the_70b_pairing_is_refused_by_its_tokenizers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file as it is, over folders that hold tokenizers and nothing else: no configuration or weight is asked for."""
    family = cli.read_config(TrainConfig, CONFIGS / "r1-llama-70b.yaml").family
    qwens = imitation(151_643, "<｜end▁of▁sentence｜>", "<|object_ref_start|>")
    imitation(128_000, "<｜end▁of▁sentence｜>").save_pretrained(tmp_path / family.target.path)
    qwens.save_pretrained(tmp_path / "qwen")
    for source in family.students.values():
        (tmp_path / source.path).symlink_to(tmp_path / "qwen")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        cli.run(record, [f"--config={CONFIGS}/r1-llama-70b.yaml", "--family.device=cpu", "--output=traces"])
    assert capsys.readouterr().err == (
        "error: family.students.small, medium, large: its tokenizer differs from the target's: it has 151643 tokens, like Qwen's, "
        "the target's 128000 tokens, like Llama 3's; a student must share it; deepseek-ai/DeepSeek-R1-Distill-Llama-8B, "
        "meta-llama/Llama-3.1-8B-Instruct, meta-llama/Llama-3.2-1B-Instruct and other models with Llama 3's tokenizer would fit\n"
    )


def folder(path: Path, words: PreTrainedTokenizerFast) -> ModelSource:
    """Write a model with a tokenizer."""
    llama(VOCAB + 8, 16, 1, seed=3).save_pretrained(path)
    words.save_pretrained(path)
    return ModelSource(str(path))


def test_special_tokens_may_differ(other_folder: Path, tmp_path: Path) -> None:
    """A student may call the end of a text something else and have tokens for its own ends; that is told, and it drafts."""
    words = tokenizer()
    words.add_special_tokens({"additional_special_tokens": ["<|assistant|>"]})
    target = ModelSource(str(other_folder / "target"))
    family = load_family(FamilyConfig(target, {"own": folder(tmp_path / "own", words)}))
    assert family.remarks == ("family.students.own: its special tokens are not the target's",)
    assert family.describe().splitlines()[1:] == list(family.remarks)


def test_tokenizers_that_cut_otherwise_are_told_apart(other_folder: Path, tmp_path: Path) -> None:
    """The same tokens under other numbers, and the same tokens by other rules."""
    target = ModelSource(str(other_folder / "target"))
    swapped = json.loads((other_folder / "target" / "tokenizer.json").read_text())
    vocab = swapped["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (tmp_path / "swapped.json").write_text(json.dumps(swapped))
    told = refusal(FamilyConfig(target, {"x": folder(tmp_path / "x", PreTrainedTokenizerFast(tokenizer_file=f"{tmp_path}/swapped.json"))}))
    assert f"'a' is number {vocab['b']} of the target's tokens and number {vocab['a']}" in told
    words = tokenizer()
    words.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert "it cuts the same text into other tokens" in refusal(FamilyConfig(target, {"x": folder(tmp_path / "y", words)}))


def test_a_tokenizer_that_loses_spaces_is_refused(tmp_path: Path) -> None:
    """As early releases of transformers 5 loaded those of R1."""
    words = tokenizer()
    words.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel()])
    assert "does not give a text back" in refusal(FamilyConfig(folder(tmp_path / "target", words), {}))


def test_contexts_are_compared(other: Family, other_folder: Path) -> None:
    """A student that reads less is told of; a limit of one's own cuts the target's."""
    assert other.remarks == ("family.students.twin: it reads 96 tokens, the target 128; it drafts no further",)
    config = family_config(other_folder)
    limited = load_family(FamilyConfig(config.target, config.students, max_context=64))
    assert (limited.context_limit, limited.remarks) == (64, ())
    with pytest.raises(UserError, match=r"family\.max_context: 1 is not a whole number of at least 2"):
        FamilyConfig(max_context=1)


def huge(path: Path) -> ModelSource:
    """Write the configuration of a model that fits nowhere, without a weight."""
    sizes: dict[str, Any] = {"hidden_size": 2**20, "intermediate_size": 2**22, "num_hidden_layers": 4, "num_attention_heads": 2**13}
    LlamaConfig(vocab_size=VOCAB, max_position_embeddings=2**17, **sizes).save_pretrained(path)
    tokenizer().save_pretrained(path)
    return ModelSource(str(path))


def test_memory_is_counted_before_loading(other_folder: Path, tmp_path: Path) -> None:
    """By hand: 4 layers of 4 * 2**40 + 3 * 2**42 weights, and 2 * 2**20 keys and values per token and layer."""
    config = family_config(other_folder)
    config = FamilyConfig(config.target, {**config.students, "huge": huge(tmp_path / "huge")})
    told = refusal(config)
    gib = (4 * (4 * 2**40 + 3 * 2**42) * 4 + 4_096 * 4 * 2 * 2**20 * 4) / 2**30
    assert f"huge {gib:.3g}; leave students out" in told
    assert told.startswith(f"family: its models need {gib:.3g} GiB on cpu, where ")
    assert "family.target.path" in refusal(FamilyConfig(ModelSource(f"{tmp_path}/huge"), {}, check_memory=False))


def test_quantised_weights_count_less(tmp_path: Path) -> None:
    """Those of the layers, by hand: 4 * 2**40 + 3 * 2**42 in each of 4; embedding, head and norms stay as they are."""
    config = LlamaConfig.from_pretrained(huge(tmp_path / "huge").path)
    layers, rest = 4 * (4 * 2**40 + 3 * 2**42), 2 * VOCAB * 2**20 + 9 * 2**20
    for quantization, width in ((None, 2), ("bitsandbytes-int4", 0.5625), ("torchao-fp8", 1), ("finegrained-fp8", 1)):
        assert _weight_bytes(config, torch.bfloat16, quantization) == layers * width + rest * 2
    config.quantization_config = {"quant_method": "awq", "bits": 4}  # as a checkpoint says that is quantised already
    assert _weight_bytes(config, torch.bfloat16, None) == layers * 0.5625 + rest * 2


def test_the_pocket_family_takes_what_it_weighs() -> None:
    """The estimate of the weights is exact for models as they are stored."""
    family = load_family(FamilyConfig())
    for model in family.models():
        assert _weight_bytes(model.model.config, torch.float32, None) == 4 * sum(p.numel() for p in model.model.parameters())


def test_a_missing_shard_is_one_line(other_folder: Path, tmp_path: Path) -> None:
    """So is one that is cut short."""
    llama(VOCAB, 32, 3, seed=1).save_pretrained(tmp_path / "x", max_shard_size="20KB")
    tokenizer().save_pretrained(tmp_path / "x")
    config = FamilyConfig(ModelSource(str(other_folder / "target")), {"x": ModelSource(str(tmp_path / "x"))})
    assert set(load_family(config).students) == {"x"}
    shard = sorted((tmp_path / "x").glob("model-*.safetensors"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    assert refusal(config).startswith(f"family.students.x.path: {tmp_path}/x cannot be loaded: ")
    shard.unlink()
    assert refusal(config).startswith(f"family.students.x.path: {tmp_path}/x cannot be loaded: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantization": "bitsandbytes-int4"}, "quantization: it needs the package bitsandbytes; pip install 'dispatch-rl[quantization]'"),
        ({"quantization": "torchao-int8"}, "quantization: it needs the package torchao;"),
        ({"quantization": "finegrained-fp8"}, "quantization: finegrained-fp8 needs a GPU of the Ada generation or later"),
        ({"device_map": "auto"}, "device_map: it needs the package accelerate;"),
    ],
)
def test_missing_packages_are_named(
    other_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    """What cannot be done here is told before any weight is read: there is none."""
    shutil.copytree(other_folder, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    lacking = {"bitsandbytes", "torchao"} | ({"accelerate"} if "device_map" in options else set())
    monkeypatch.setattr(loading, "find_spec", lambda package: None if package in lacking else Mock())
    student = ModelSource(f"{tmp_path}/bare/tiny", **options)
    config = FamilyConfig(ModelSource(f"{tmp_path}/bare/target"), {"x": student}, device="cpu")
    assert refusal(config).startswith(f"family.students.x.{message}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int7"}, "dtype: 'int7' is none of float32, bfloat16, float16"),
        ({"quantization": "int1"}, "quantization: 'int1' is none of bitsandbytes-int4, torchao-int8, torchao-fp8, finegrained-fp8"),
        ({"device_map": ["cuda:0"]}, "device_map: ['cuda:0'] is neither a name"),
    ],
)
def test_unknown_ways_to_load_are_refused(options: dict[str, Any], message: str) -> None:
    """Where no command line has checked them, as in a bundle."""
    with pytest.raises(UserError) as caught:
        ModelSource("x/y", **options)
    assert str(caught.value).startswith(message)


def test_every_model_may_have_its_own_type(other_folder: Path) -> None:
    """A student of 16 bits beside a target of 32."""
    config = family_config(other_folder)
    family = load_family(FamilyConfig(config.target, {"x": ModelSource(str(other_folder / "tiny"), dtype="bfloat16")}))
    assert [next(model.model.parameters()).dtype for model in family.models()] == [torch.float32, torch.bfloat16]


@pytest.fixture
def lookup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Cut the network, with an empty cache, and return what is called when a host is looked up."""
    lookup = Mock(side_effect=OSError("no network here"))
    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "https://huggingface.co")
    return lookup


def test_a_hub_out_of_reach_is_asked_once(lookup: Mock) -> None:
    """One look instead of retries for every file of every model; the line says where the model is not."""
    config = FamilyConfig(ModelSource("Qwen/Qwen3-14B"), {"x": ModelSource("Qwen/Qwen3-0.6B")})
    reason = "the hub, https://huggingface.co, cannot be reached: no network here"
    assert refusal(config) == f"family.target.path: Qwen/Qwen3-14B is neither a folder here nor in the local cache, and {reason}"
    lookup.assert_called_once()


def test_offline_is_offline(lookup: Mock, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``HF_HUB_OFFLINE=1`` nobody is asked at all."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    told = refusal(FamilyConfig(ModelSource("Qwen/Qwen3-14B"), {}))
    assert told == "family.target.path: Qwen/Qwen3-14B is neither a folder here nor in the local cache, and HF_HUB_OFFLINE=1 is set"
    lookup.assert_not_called()


def test_what_is_in_the_cache_needs_no_hub(lookup: Mock, other_folder: Path, tmp_path: Path) -> None:
    """A model that was downloaded before is loaded; one of which a file is missing is told so."""
    for name in ("target", "tiny"):
        cached = tmp_path / "hub" / f"models--me--{name}"
        shutil.copytree(other_folder / name, cached / "snapshots" / "0123abcd")
        (cached / "refs").mkdir()
        (cached / "refs" / "main").write_text("0123abcd")
    config = FamilyConfig(ModelSource("me/target"), {"tiny": ModelSource("me/tiny")})
    assert load_family(config).vocab == VOCAB + 8
    lookup.assert_called_once()
    (tmp_path / "hub" / "models--me--tiny" / "snapshots" / "0123abcd" / "model.safetensors").unlink()
    told = refusal(config)
    assert told.startswith("family.students.tiny.path: me/tiny cannot be loaded: ")
    assert told.endswith(", and the hub, https://huggingface.co, cannot be reached: no network here")
