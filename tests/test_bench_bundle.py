"""Benchmarks of exported policies: endurance, and transformers' own options."""

import json
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dispatch_rl import bench
from dispatch_rl.bench import measuring
from dispatch_rl.bench.decode import DecodeBenchConfig
from dispatch_rl.bench.measuring import Measured, measure, rows_of
from dispatch_rl.decoding.families import Family
from dispatch_rl.errors import UserError
from dispatch_rl.policies.fixed import FixedPolicy
from dispatch_rl.prompts import Prompt
from tests.bundles import default_arms, pocket_bundle, write


@pytest.fixture
def bundle(pocket: Family, tmp_path: Path) -> Path:
    """A bundle of a fixed arm."""
    return write(pocket_bundle(pocket, FixedPolicy(0), default_arms()), tmp_path / "bundle")


def test_endurance_counts_memory_and_failures(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It writes as much as it was asked to and says what was left behind."""
    bench.main(["endurance", f"--bundle={bundle}", "--tokens=1000", "--prompts.max_new_tokens=128", f"--json={tmp_path}/rows.json"])
    found = json.loads((tmp_path / "rows.json").read_text())
    assert found["num_emitted_tokens"] >= 1000
    assert found["num_failures"] == 0
    assert found["memory_after_mib"] > 0
    assert found["objects_after"] - found["objects_before"] < 50
    assert "failures of the dispatcher: 0" in capsys.readouterr().out
    with pytest.raises(UserError, match="tokens: 10 is not at least 1000"):
        bench.main(["endurance", f"--bundle={bundle}", "--tokens=10"])


def test_a_policy_against_transformers_options(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All options are tried on validation prompts; the best meets the policy on others, with the same tokens."""
    sizes = ["--num_prompts=2", "--num_tuning_prompts=1", "--prompts.max_new_tokens=8"]
    bench.main(["decode", f"--bundle={bundle}", *sizes, f"--json={tmp_path}/rows.json"])
    printed = capsys.readouterr().out
    tried = [line for line in printed.splitlines() if line.startswith("validation: transformers, ")]
    assert len(tried) == 11  # three students as they come, with five tokens, and with five while sure; lookup with five and ten
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert rows[0]["policy"] == "dispatch-rl, bundle"
    assert rows[1]["policy"].startswith("transformers, ")
    assert rows[1]["speedup"] == 1
    assert rows[1]["policy"].removeprefix("transformers, ") in tried[-1]


@pytest.mark.parametrize(("option", "count"), [("num_prompts", 1), ("num_tuning_prompts", 0)])
def test_too_few_prompts_are_refused(option: str, count: int) -> None:
    """In one line, before anything is loaded."""
    few: Any = {option: count}
    with pytest.raises(UserError, match=f"^{option}: {count} is not at least {count + 1}"):
        DecodeBenchConfig(**few)


def parting(in_float32: bool) -> Measured:
    """Let two decoders disagree about one of two prompts: the first writes two tokens, the second four."""
    chosen = [Prompt("code", (number,), number) for number in range(2)]
    decoders: dict[str, Any] = {"ours": lambda prompt: [1, 2], "theirs": lambda prompt: [1, 2, 3, 4] if prompt[0] else [1, 2]}
    family: Any = SimpleNamespace(in_float32=in_float32)
    return measure(decoders, chosen, 0, family)


def test_decoders_that_disagree_have_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32; in 16 bits texts may part, and half the time counts for twice the tokens."""
    ticks = count()
    monkeypatch.setattr(measuring, "perf_counter", lambda: float(next(ticks)))
    with pytest.raises(UserError, match=r"the decoders disagree on a code prompt .number 1.; no speed is reported"):
        parting(True)
    found = parting(False)
    assert (found.counts, found.parted) == ([2, 2], 1)
    assert found.times_ms == {"ours": [1000, 1000], "theirs": [1000, 500]}
    assert {row["num_parted"] for row in rows_of(found, 0, "a CPU")} == {1}
