"""Families of the right shapes with random weights: made where and as they are to be, and measured without a tokenizer or a weight file."""

import json
import re
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, PreTrainedConfig, Qwen2Config

from dispatch_rl import bench, cli
from dispatch_rl.bandwidth import copy_bandwidth, floors_ms, weight_bytes_read
from dispatch_rl.bench.decode import DecodeBenchConfig
from dispatch_rl.bench.random_weights import VERIFICATION
from dispatch_rl.config import FamilyConfig, ModelSource
from dispatch_rl.decoding import memory
from dispatch_rl.decoding.random_weights import random_family, random_model
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.decoding.shapes import known_config
from dispatch_rl.errors import UserError
from dispatch_rl.replay.fingerprint import family_fingerprint
from dispatch_rl.replay.measured_texts import MeasuredTexts

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
META = torch.device("meta")


def bare_family(folder: Path) -> Path:
    """Write the shapes of a target and two students, with vocabularies of three sizes, and a run's file that names them."""
    shared: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    shapes: dict[str, PreTrainedConfig] = {
        "target": LlamaConfig(vocab_size=160, hidden_size=32, intermediate_size=64, num_hidden_layers=3, **shared),
        "small": Qwen2Config(vocab_size=128, hidden_size=16, intermediate_size=32, num_hidden_layers=1, **shared),
        "large": Qwen2Config(vocab_size=144, hidden_size=32, intermediate_size=32, num_hidden_layers=2, **shared),
    }
    for name, shape in shapes.items():
        shape.save_pretrained(folder / name)
    students = f"{{small: {{path: {folder}/small, quantization: bitsandbytes-int4}}, large: {{path: {folder}/large}}}}"
    section = f"family:\n  target: {{path: {folder}/target, device_map: auto}}\n  students: {students}\n  device: cpu\n  dtype: bfloat16\n"
    (folder / "run.yaml").write_text(f"name: bare\n{section}draft_length: 9\n")
    return folder / "run.yaml"


def family_of(argv: list[str]) -> FamilyConfig:
    """Return the family that a command line asks for."""
    parser = cli.make_parser(DecodeBenchConfig, "bench decode", "")
    return cli.build(DecodeBenchConfig, parser, cli.parse(parser, argv)).family


def refusal(argv: list[str]) -> str:
    """Return what is told of a command line that cannot be run."""
    with pytest.raises(UserError) as caught:
        bench.main(["decode", "--random_weights", *argv])
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize(
    ("path", "parameters"),
    [
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", 1_777_088_000),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", 7_615_616_512),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-14B", 14_770_033_664),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", 32_763_876_352),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", 8_030_261_248),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-70B", 70_553_706_496),
        ("meta-llama/Llama-3.2-1B-Instruct", 1_235_814_400),
        ("Qwen/Qwen3-0.6B", 596_049_920),
        ("Qwen/Qwen3-1.7B", 1_720_574_976),
        ("Qwen/Qwen3-4B", 4_022_468_096),
        ("Qwen/Qwen3-8B", 8_190_735_360),
        ("Qwen/Qwen3-14B", 14_768_307_200),
        ("Qwen/Qwen3-32B", 32_762_123_264),
    ],
)
def test_known_shapes_have_as_many_parameters_as_are_published(path: str, parameters: int) -> None:
    """Made on a device without memory; heads that are tied to embeddings count once."""
    config = known_config(path)
    assert config is not None
    assert random_model(config, torch.bfloat16, META).num_parameters() == parameters


def test_the_files_name_known_shapes() -> None:
    """Every model of the families that are too large for a laptop can be built without the hub."""
    for name in ("r1-qwen-32b", "r1-llama-70b", "qwen3"):
        for source in family_of([f"--family={CONFIGS}/{name}.yaml"]).sources.values():
            assert known_config(source.path) is not None, source.path


class Large(TorchDispatchMode):
    """Remembers type and device of every large tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[tuple[torch.dtype, str]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.numel() > 10_000:
            self.seen.add((result.dtype, result.device.type))
        return result


def test_weights_are_nowhere_else_and_of_no_other_type() -> None:
    """Not on the host before they are on the device, not in float32 before they are narrow: 114 GB would be twice that, or not fit."""
    config = known_config("deepseek-ai/DeepSeek-R1-Distill-Qwen-32B")
    assert config is not None
    with Large() as large:
        model = random_model(config, torch.bfloat16, META)
    assert large.seen == {(torch.bfloat16, "meta")}
    assert model.config.rope_parameters["rope_theta"] == 1e6


def test_bytes_that_a_pass_reads_by_hand(tmp_path: Path) -> None:
    """All weights but the embedding, 2 bytes each, and no copy that is not there; a tied embedding is the head, and read."""
    small, tied = (known_config(path) for path in ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "Qwen/Qwen3-0.6B"))
    assert small is not None
    assert tied is not None
    read = weight_bytes_read(random_model(small, torch.bfloat16, META))
    assert read == 2 * (1_777_088_000 - 151_936 * 1536)
    assert 1000 * read / 4.8e12 == pytest.approx(0.643, abs=5e-4)  # ms at the bandwidth that an H200 has on paper
    assert weight_bytes_read(random_model(tied, torch.bfloat16, META)) == 2 * 596_049_920
    family = random_family(family_of([f"--family={bare_family(tmp_path)}"]))
    # Fused projections are the same weights, not more: 2 layers of q, o 32 * 32, k, v 16 * 32, three of 32 * 32, biases and norms; head.
    layers = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 32 + 32 + 2 * 16 + 2 * 32)
    assert weight_bytes_read(family.students["large"].model) == 2 * (layers + 32 + 144 * 32)
    assert floors_ms(family, 1e6)["large"] == pytest.approx(2 * (layers + 32 + 144 * 32) / 1000)
    assert copy_bandwidth(family.device) > 1e8


def test_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    """And leave torch's own random numbers as they were; what is common of the vocabularies is used."""
    config = family_of([f"--family={bare_family(tmp_path)}"])
    before = torch.random.get_rng_state()
    first, again, other = (random_family(config, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(before, torch.random.get_rng_state())
    assert family_fingerprint(first) == family_fingerprint(again) != family_fingerprint(other)
    assert (first.vocab, list(first.students)) == (128, ["small", "large"])
    assert first.remarks == ("quantization and device_map are left out: every model is whole, on cpu",)
    assert list(random_family(config, ["large"]).students) == ["large"]


def test_the_command_measures_every_part_beside_its_floor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From folders that hold a ``config.json`` each and nothing else."""
    sizes = ["--profiling.rounds=240", "--profiling.draft_lengths=[1, 2]", "--profiling.contexts=[64, 128, 4096]", "--draft_length=3"]
    bench.main(["decode", f"--family={bare_family(tmp_path)}", "--random-weights", *sizes, f"--json={tmp_path}/rows.json"])
    printed = capsys.readouterr().out
    assert "how much is accepted means nothing" in printed
    assert "accept" not in printed.replace("how much is accepted", "")
    rows = json.loads((tmp_path / "rows.json").read_text())
    parts = {(row["model"], row["part"], row.get("draft_length", row.get("catch_up"))) for row in rows}
    assert {("target", VERIFICATION, drafted) for drafted in (0, 1, 2, 3)} <= parts
    for student in ("small", "large"):
        assert {(student, "first draft token", 1), (student, "further draft token", None)} <= parts
    assert any(row["part"] == "first draft token" and row["catch_up"] > 1 for row in rows)
    assert {row["context"] for row in rows if row["model"]} == {40, 72}  # texts of 16 to 64, and of 16 to 128
    for row in rows[:-1]:
        assert row["over_floor"] == pytest.approx(row["median_ms"] / row["floor_ms"])
        assert row["gb_per_s"] == pytest.approx(row["copy_gb_per_s"] / row["over_floor"])
        assert row["dtype"] == "bfloat16"
    assert rows[-1]["part"] == "a round besides"
    assert "verify a draft of 3" in printed
    assert "warm-up: " in printed


def test_without_the_hub_the_shapes_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So memory is counted, and refused, before a weight is made; the free memory stands for a GPU's, which is not to be had here."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(memory, "_free_bytes", lambda place: 78 * 2**30)
    asked = [f"--family={CONFIGS}/r1-qwen-32b.yaml", "--family.device=cpu"]
    weights = {"target": 32_763_876_352, "small": 1_777_088_000, "medium": 7_615_616_512, "large": 14_770_033_664}
    cached = {"target": 262_144, "small": 28_672, "medium": 57_344, "large": 196_608}
    gib = {name: (2 * weights[name] + 4_096 * cached[name]) / 2**30 for name in weights}
    each = ", ".join(f"{name} {size:.3g}" for name, size in gib.items())
    assert refusal(asked) == (
        f"family: its models need {sum(gib.values()):.3g} GiB on cpu, where 78 GiB are free, enough for target and small: {each}; "
        "take fewer by --students; family.check_memory=false tries anyway"
    )
    assert "is neither a folder here nor in the local cache" in refusal([*asked, "--family.target.path=some/other"])


def test_running_out_of_memory_is_one_line(tmp_path: Path) -> None:
    """With the check of memory off; the embedding alone is larger than any address space."""
    bare_family(tmp_path)
    LlamaConfig(vocab_size=2**42, hidden_size=16, num_attention_heads=2).save_pretrained(tmp_path / "target")
    told = refusal([f"--family={tmp_path}/run.yaml", "--family.check_memory=false"])
    assert told.startswith("family: the device ran out of memory while building the models: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--student=small"], "student: it has no meaning with random_weights"),
        (["--bundle=bundle"], "bundle: it has no meaning with random_weights"),
        (["--prompts.max_new_tokens=9"], "prompts: it has no meaning with random_weights"),
        (["--students=[tiny]"], "students: the family has no 'tiny'; it has small, large"),
        (["--random_weights=false", "--students=[small]"], "students: it says what random_weights builds"),
        (["--profiling.contexts=[128, 64]"], "profiling.contexts: [128, 64] are not lengths of at least 64 that rise"),
        (["--profiling.draft_lengths=[60]", "--profiling.contexts=[64]"], "profiling: drafts of 60 tokens leave no room in texts of 64"),
        (["--draft_length=0"], "draft_length: 0 is not at least 1"),
    ],
)
def test_what_has_no_meaning_is_refused_by_name(options: list[str], message: str, tmp_path: Path) -> None:
    """In one line, before long."""
    assert refusal([f"--family={bare_family(tmp_path)}", *options]).startswith(message)


def test_a_section_is_read_from_a_file(tmp_path: Path) -> None:
    """Of a whole run or of the section alone; options win wherever they stand; inline it is still understood."""
    run = bare_family(tmp_path)
    source = ModelSource(f"{tmp_path}/target", device_map="auto")
    for argv in ([f"--family={run}", "--family.dtype=float16"], ["--family.dtype=float16", "--family", str(run)]):
        found = family_of(argv)
        assert (found.target, found.dtype, found.device) == (source, "float16", "cpu")
    (tmp_path / "keys.yaml").write_text("dtype: float16\nthreads: null\n")
    assert family_of([f"--family={tmp_path}/keys.yaml"]) == FamilyConfig(dtype="float16", threads=None)
    assert family_of(["--family", '{"dtype": "float16"}']) == FamilyConfig(dtype="float16")
    for content, message in (("[1, 2]", "holds no keys"), ("family: 3", "holds no keys"), ("a: [", "is no YAML")):
        (tmp_path / "wrong.yaml").write_text(content)
        with pytest.raises(UserError, match=f"family: .*wrong.yaml {message}"):
            family_of([f"--family={tmp_path}/wrong.yaml"])
    for argv, file in ((["--family", "nothing.yaml"], "nothing.yaml"), (["--family"], "")):
        with pytest.raises(UserError, match=re.escape(f"family: there is no file '{file}'")):
            family_of(argv)


def test_texts_are_measured_about_the_contexts_asked_for(tmp_path: Path) -> None:
    """Those that the family reads: 256 tokens. Each text begins 256 tokens before its end, but with a prompt of 16."""
    config = DecodeBenchConfig().profiling
    family = random_family(family_of([f"--family={bare_family(tmp_path)}"]))
    texts = MeasuredTexts.of(family, config, 24)
    assert (texts.spans, texts.edges, texts.middles) == (((16, 256),), (0, 256), (136,))
    lengths = {(session.prompt_length, session.limit) for session, _ in zip(texts.sessions(family, Sampling(), 0), range(2), strict=False)}
    assert lengths == {(16, 256)}
