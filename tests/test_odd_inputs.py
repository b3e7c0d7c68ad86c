"""What Python's callers pass without a command line's checks: taken as it is meant, or one line that says what would be right."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.errors import UserError
from dispatch_rl.policies.fixed import FixedPolicy
from dispatch_rl.runtime.decoder import AdaptiveDecoder
from tests.bundles import ARMS, pocket_bundle, write


@pytest.fixture(scope="module")
def decoder(pocket: Family) -> AdaptiveDecoder:
    """A decoder that always drafts."""
    return AdaptiveDecoder(pocket, FixedPolicy(0), ARMS)


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("temperature", None, "is not a number"),
        ("temperature", "0.5", "is not a number"),
        ("temperature", True, "is not a number"),
        ("temperature", 1e-31, "would make logits infinite; 0 is greedy, else take 1e-30 or more"),
        ("temperature", 5e-324, "would make logits infinite"),
        ("top_k", 2.5, "is not an integer"),
        ("top_p", "0.5", "is not a number"),
        ("seed", 1.5, "is not an integer"),
        ("seed", None, "is not an integer"),
        ("method", "magic", "is neither coupled nor rejection"),
    ],
)
def test_a_wrong_way_to_sample_is_one_line(key: str, value: Any, why: str) -> None:
    """The line begins with the key and what was given for it."""
    with pytest.raises(UserError) as caught:
        Sampling(**{key: value})
    assert str(caught.value).startswith(f"sampling.{key}: {value!r} {why}")


def test_numbers_of_numpy_are_numbers(decoder: AdaptiveDecoder) -> None:
    """As sampling, as limits, as prompts; the largest seed, too."""
    prompt = decoder.family.encode("def add(")
    for seed in (np.int32(7), np.uint32(7), np.uint64(2**64 - 1)):
        expected = decoder.generate(prompt, 12, temperature=0.5, top_k=50, seed=int(seed)).tokens
        numpys: dict[str, Any] = {"temperature": np.float32(0.5), "top_k": np.int64(50), "seed": seed}
        for given in (np.array(prompt), torch.tensor(prompt)):
            assert decoder.generate(given, np.int32(12), **numpys).tokens == expected  # type: ignore[arg-type]


def test_the_least_temperature_is_greedy(decoder: AdaptiveDecoder) -> None:
    """Nothing overflows: the text is that of temperature zero."""
    assert decoder.generate("def add(", 20, temperature=1e-30, seed=3).tokens == decoder.generate("def add(", 20).tokens


def test_no_stop_string_may_be_called_none(decoder: AdaptiveDecoder) -> None:
    """Whole and as a stream."""
    text = decoder.generate("def add(", 12)
    nothing: Any = None
    assert decoder.generate("def add(", 12, stop=nothing).tokens == text.tokens
    assert tuple(token.id for token in decoder.stream("def add(", 12, stop=nothing)) == text.tokens


def test_a_family_is_not_given_by_name(pocket: Family, tmp_path: Path) -> None:
    """The line says what it may be."""
    name: Any = "pocket"
    with pytest.raises(UserError, match="family: a str is neither a Family nor a FamilyConfig"):
        AdaptiveDecoder.from_bundle(write(pocket_bundle(pocket), tmp_path / "bundle"), name)


def test_autocast_is_refused_by_name(decoder: AdaptiveDecoder) -> None:
    """It would run the models in another type than the one that their texts are promised for."""
    with torch.autocast(decoder.family.device.type, dtype=torch.bfloat16):
        for call in (decoder.generate, decoder.stream):
            with pytest.raises(UserError, match=r"autocast: .* leave torch\.autocast"):
                call("def add(", 4)
