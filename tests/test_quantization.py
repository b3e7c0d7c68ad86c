"""Quantised students, where the packages for them are installed: `pip install 'dispatch-rl[quantization]'`."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from dispatch_rl.config import FamilyConfig, ModelSource
from dispatch_rl.decoding.arms import Arm, ArmTable
from dispatch_rl.decoding.families import load_family
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.errors import UserError
from dispatch_rl.policies.fixed import FixedPolicy
from dispatch_rl.replay.fingerprint import family_fingerprint
from dispatch_rl.runtime.decoder import AdaptiveDecoder
from tests.families import VOCAB, llama, tokenizer
from tests.test_lossless import own_text

lacking = [name for name in ("accelerate", "bitsandbytes", "torchao") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(lacking), reason=f"without {', '.join(lacking)}")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose layers are wide enough to be quantised."""
    folder = tmp_path_factory.mktemp("wide")
    llama(VOCAB, 64, 2, seed=1, context=512).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True:UserWarning")  # in bitsandbytes, on a CPU
@pytest.mark.parametrize("quantization", ["bitsandbytes-int4", "torchao-int8", "torchao-fp8"])
def test_a_quantised_student_is_lossless(made: Path, quantization: Any) -> None:
    """It is the target made smaller: most of its drafts stand, not all do, and the text is the target's; its fingerprint is its own."""
    plain = FamilyConfig(ModelSource(str(made)), {"same": ModelSource(str(made))}, device="cpu")
    family = load_family(FamilyConfig(plain.target, {"same": ModelSource(str(made), quantization=quantization)}, device="cpu"))
    decoder = AdaptiveDecoder(family, FixedPolicy(0), ArmTable([Arm("same", 4)]))
    prompt, s = family.encode("Problem: 12 + 34"), Sampling(1.7, seed=3)
    text = decoder.generate(prompt, 256, temperature=1.7, seed=3)
    assert list(text.tokens) == own_text(family, prompt, text.tokens, s)
    assert 0.3 < text.metrics["draft_acceptance_rate"] < 1
    fingerprints = [family_fingerprint(load_family(config)) for config in (plain, FamilyConfig(plain.target, plain.students, device="cpu"))]
    assert fingerprints[0] == fingerprints[1] != family_fingerprint(family)


def test_a_model_may_be_spread(made: Path) -> None:
    """Over several devices, of which a machine without GPUs has one; layers that would stay on the disk are refused."""
    places: dict[str, Any] = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    layers = {f"model.layers.{i}": "cpu" for i in range(2)}
    target = ModelSource(str(made), device_map=places | layers)
    family = load_family(FamilyConfig(target, {"whole": ModelSource(str(made), device_map="cpu")}, device="cpu"))
    decoder = AdaptiveDecoder(family, FixedPolicy(0), ArmTable([Arm("whole", 4)]))
    text = decoder.generate(family.encode("def add("), 64)
    assert list(text.tokens) == own_text(family, family.encode("def add("), text.tokens, Sampling())
    on_disk = ModelSource(str(made), device_map=places | layers | {"model.layers.1": "disk"})
    with pytest.raises(UserError, match=r"^family\.target\.device_map: parts of .* would stay on the disk"):
        load_family(FamilyConfig(on_disk, {}, device="cpu"))
