"""The kernels compile for the GPUs that are not here, and can be captured in a CUDA graph on the one that is."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
import torch

from dispatch_rl.kernels import attention_triton, entropy_triton, rotate_and_store_triton, swiglu_triton, verify_triton
from dispatch_rl.kernels.noise import gumbel
from dispatch_rl.kernels.rotate_and_store import HeadNorms
from dispatch_rl.kernels.verify import Rule
from tests.compile_kernels import CAPABILITIES
from tests.helpers import DEVICE, needs_gpu
from tests.kernel_calls import turn

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[1]
SHARED_MEMORY = 48 * 1024
"""What a program gets on every GPU without asking (bytes)."""


def test_every_kernel_compiles_for_ampere_hopper_and_blackwell(tmp_path: Path) -> None:
    """In a process of its own, since here Triton may interpret; every kernel in ``kernels/`` is among them. Registers suffice."""
    env = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.compile_kernels"], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    compiled = json.loads(done.stdout)
    assert all(kernel["shared"] <= SHARED_MEMORY for kernel in compiled)
    assert not [kernel for kernel in compiled if kernel["spilled"]]
    launched = {name for path in (ROOT / "kernels").glob("*_triton.py") for name in re.findall(r"def (_\w+_kernel)\(", path.read_text())}
    for capability in CAPABILITIES:
        assert {kernel["kernel"] for kernel in compiled if kernel["capability"] == capability} == launched


def _captured(run: Callable[[], T]) -> tuple[torch.cuda.CUDAGraph, T]:
    """Return a graph of ``run``, compiled before, and what its replays leave."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    return graph, captured


@needs_gpu
@pytest.mark.parametrize("rule", [Rule(), Rule("coupled"), Rule("coupled", 40, 0.9), Rule("rejection")], ids=str)
def test_a_captured_graph_reads_its_turn_anew(rule: Rule) -> None:
    """Replayed with other logits, seed, position, draft length and temperature, a graph does what a launch does."""
    logits, drafted = torch.randn(4, 50_257, device=DEVICE), torch.zeros(3, dtype=torch.int64, device=DEVICE)
    q_draft = torch.rand(3, 50_257, device=DEVICE).softmax(-1) if rule.method == "rejection" else None
    at = turn(DEVICE)
    graph, captured = _captured(lambda: verify_triton.verify(logits, drafted, at, rule, q_draft))
    for seed in range(5):
        logits.normal_()
        for value, new in zip(at, turn(DEVICE, seed % 4, seed, 0.5 + seed), strict=True):
            value.copy_(new)
        drafted.copy_((logits.float() / at.temperature + gumbel(seed, 11 + torch.arange(4, device=DEVICE), 50_257)).argmax(-1)[:-1])
        graph.replay()
        expected = verify_triton.verify(logits, drafted, at, rule, q_draft)
        assert torch.equal(captured.packed[:2], expected.packed[:2])


@needs_gpu
def test_entropy_can_be_captured() -> None:
    """Split rows, in a graph."""
    logits = torch.randn(6, 152_064, device=DEVICE)
    graph, captured = _captured(lambda: entropy_triton.entropy(logits))
    logits.normal_()
    graph.replay()
    for ours, expected in zip(captured, entropy_triton.entropy(logits), strict=True):
        assert torch.equal(ours, expected)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_captured_graph_attends_to_what_is_there_at_its_replay(dtype: torch.dtype) -> None:
    """Captured over one token and replayed over other lengths and other trees, it does what a launch does."""
    q, visible = torch.randn(6, 40, 128, device=DEVICE, dtype=dtype), torch.ones(6, 6, dtype=torch.bool, device=DEVICE).tril_()
    keys, values = torch.randn(16, 8_192, 128, device=DEVICE, dtype=dtype).chunk(2)
    length = torch.tensor([6], device=DEVICE)
    graph, captured = _captured(lambda: attention_triton.attention(q, keys, values, length, visible))
    for tokens in (8_192, 7, 512, 6, 4_097):
        length.fill_(tokens)
        visible.copy_(torch.rand(6, 6, device=DEVICE) < 0.5)
        q.normal_()
        graph.replay()
        assert torch.equal(captured, attention_triton.attention(q, keys, values, length, visible))


@needs_gpu
@pytest.mark.parametrize("normed", [False, True], ids=["plain", "normed"])
def test_a_captured_graph_stores_where_it_is_told_at_its_replay(normed: bool) -> None:
    """Captured at the beginning of the cache and replayed elsewhere with other angles, it does what a launch does, in place."""
    given = torch.randn(6, 16, 128, device=DEVICE, dtype=torch.bfloat16)
    cos, sin = torch.randn(2, 6, 1, 128, device=DEVICE, dtype=torch.bfloat16)
    where = torch.arange(6, device=DEVICE)
    q_weight, k_weight = torch.rand(2, 128, device=DEVICE, dtype=torch.bfloat16)
    norms = HeadNorms(q_weight, k_weight, 1e-6) if normed else None
    qkv, buffer = given.clone(), torch.zeros(4, 512, 128, device=DEVICE, dtype=torch.bfloat16)
    graph, captured = _captured(lambda: rotate_and_store_triton.rotate_and_store(qkv, cos, sin, buffer, where, norms))
    for start in (506, 0, 100):
        where.copy_(start + torch.randperm(6, device=DEVICE))
        for x in (given, cos, sin):
            x.normal_()
        qkv.copy_(given)
        buffer.zero_()
        graph.replay()
        launched, cache = given.clone(), torch.zeros_like(buffer)
        assert torch.equal(captured, rotate_and_store_triton.rotate_and_store(launched, cos, sin, cache, where, norms))
        assert torch.equal(qkv, launched)
        assert torch.equal(buffer, cache)


@needs_gpu
def test_swiglu_can_be_captured() -> None:
    """It reads what is there at the replay."""
    gate_up = torch.randn(6, 2 * 8_960, device=DEVICE, dtype=torch.bfloat16)
    graph, captured = _captured(lambda: swiglu_triton.swiglu(gate_up))
    gate_up.normal_()
    graph.replay()
    assert torch.equal(captured, swiglu_triton.swiglu(gate_up))
