"""Noise is a pure function of (seed, position, token, stream, draw), and has the distribution it claims."""

from math import log

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from dispatch_rl.kernels import noise_triton
from dispatch_rl.kernels.noise import Stream, gumbel, philox, uniform
from tests.helpers import DEVICE, FALSE_ALARM, chi_square, poisoned

TWO_32 = 2**32
SEEDS = (0, 7, TWO_32, TWO_32 + 7, 0x299F31D0A4093822, 2**64 - 1)


def plain_philox(counter: tuple[int, ...], key: tuple[int, ...], rounds: int = 10) -> tuple[int, ...]:
    """Return Philox4x32 as the paper's figure has it: multiply, swap the halves, bump the key; in integers without limit."""
    if rounds == 0:
        return counter
    left, right = divmod(0xD2511F53 * counter[0], TWO_32), divmod(0xCD9E8D57 * counter[2], TWO_32)
    mixed = (right[0] ^ counter[1] ^ key[0], right[1], left[0] ^ counter[3] ^ key[1], left[1])
    return plain_philox(mixed, ((key[0] + 0x9E3779B9) % TWO_32, (key[1] + 0xBB67AE85) % TWO_32), rounds - 1)


def plain_uniform(seed: int, position: int, token: int, stream: int, draw: int) -> float:
    """Return one number by the layout that the module documents."""
    words = plain_philox((token // 4, position, stream, draw), (seed % TWO_32, seed // TWO_32))
    rounded = np.float32(words[token % 4]) + np.float32(0.5)
    return min(float(rounded) / TWO_32, 1 - 2**-24)


def some(seed: int, vocab: int = 64, stream: Stream = Stream.TOKEN, draw: int = 0) -> torch.Tensor:
    """Return the numbers of positions 0 to 15."""
    return uniform(seed, torch.arange(16), vocab, stream, draw)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_answers(counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]) -> None:
    """The known answers of Random123's kat_vectors, ours and those of the plain-integer version below which others are tested."""
    assert tuple(philox(torch.tensor(counter), key).tolist()) == words
    assert plain_philox(counter, key) == words


def test_the_first_number_by_hand() -> None:
    """All-zero counter and key give 0x6627e8d5; float32 keeps 24 bits, so it rounds up to 0x6627e900."""
    assert uniform(0, torch.tensor([0]), 1, Stream.TOKEN).item() == 0x6627E900 / TWO_32


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("stream", Stream)
def test_the_layout_is_the_documented_one(seed: int, stream: Stream) -> None:
    """Every number equals the plain-integer version's, to the bit, for seeds beyond 32 bits and a vocabulary of 4 * 2 + 3."""
    positions, vocab = [0, 1, 5, 131_071, TWO_32 - 1], 11
    for draw in (0, 1, 900_001):
        found = uniform(seed, torch.tensor(positions), vocab, stream, draw)
        assert found.dtype == torch.float32
        assert found.tolist() == [[plain_uniform(seed, p, token, stream, draw) for token in range(vocab)] for p in positions]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("stream", Stream)
def test_the_kernels_uniforms_are_the_references(seed: int, stream: Stream) -> None:
    """To the bit, for every stream, large seeds, positions and draws, and vocabularies that are no multiple of four."""
    positions, signed = torch.tensor([0, 5, 131_071, TWO_32 - 1]), seed - 2**64 if seed >= 2**63 else seed
    for vocab, draw in ((1, 0), (11, 900_001), (2_039, 3)):
        with poisoned():
            found = noise_triton.uniform(
                torch.tensor(signed, device=DEVICE), positions.to(DEVICE), vocab, stream, torch.tensor(draw, device=DEVICE)
            )
        assert torch.equal(found.cpu(), uniform(seed, positions, vocab, stream, draw))


def test_numbers_do_not_depend_on_what_else_is_asked_for() -> None:
    """One position, any order, repeats and a cut vocabulary give the numbers of the whole table."""
    whole = uniform(3, torch.arange(100), 151, Stream.TOKEN)
    for vocab in (1, 2, 3, 4, 5, 150, 151):
        for chosen in ([42], [99, 0, 17], [8, 8, 8]):
            assert torch.equal(uniform(3, torch.tensor(chosen), vocab, Stream.TOKEN), whole[chosen, :vocab])
            assert torch.equal(gumbel(3, torch.tensor(chosen), vocab), gumbel(3, torch.arange(100), 151)[chosen, :vocab])


def test_nothing_shares_a_number() -> None:
    """Another position, token, stream, draw, low or high seed word gives other numbers."""
    tables = [some(seed) for seed in SEEDS] + [some(7, stream=s) for s in Stream if s] + [some(7, draw=d) for d in (1, 2, 3)]
    words = torch.stack(tables).flatten()
    # 12 * 1024 draws of about 2^24 or more distinct floats collide a handful of times; any shared row would add 64.
    assert len(words) - len(words.unique()) < 64


def test_no_positions_give_an_empty_table() -> None:
    """An empty draft asks for no noise."""
    assert uniform(1, torch.arange(0), 5, Stream.ACCEPT).shape == (0, 5)


def test_extreme_words_stay_strictly_between_zero_and_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Words 0, 1, 2^31 and 2^32 - 1 become 2^-33, 1.5 * 2^-32, 1/2 and 1 - 2^-24, and their Gumbel noise is finite."""

    def extreme(counter: torch.Tensor, key: tuple[int, int]) -> torch.Tensor:
        return torch.tensor([0, 1, 2**31, 2**32 - 1])[:, None, None].expand(4, *counter.shape[1:])

    monkeypatch.setattr("dispatch_rl.kernels.noise.philox", extreme)
    assert uniform(0, torch.tensor([0]), 4, Stream.TOKEN).tolist() == [[2**-33, 1.5 * 2**-32, 0.5, 1 - 2**-24]]
    by_hand = [33 * log(2), 32 * log(2) - log(1.5), -log(log(2)), -log(24 * log(2))]
    assert gumbel(0, torch.tensor([0]), 4)[0].tolist() == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize("stream", Stream)
def test_noise_is_gumbel(stream: Stream) -> None:
    """Kolmogorov-Smirnov against exp(-exp(-x)) over 200,000 numbers; false alarm 1e-6."""
    noise = gumbel(11, torch.arange(200), 1000, stream).flatten().double().numpy()
    assert kstest(noise, lambda x: np.exp(-np.exp(-x))).pvalue > FALSE_ALARM


def test_adding_gumbel_noise_samples() -> None:
    """argmax(log p + noise) is distributed as p over 200,000 positions; false alarm 1e-6."""
    p = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.04, 0.009, 0.001])
    tokens = (p.log() + gumbel(5, torch.arange(200_000), len(p))).argmax(-1)
    statistic, threshold = chi_square(tokens.bincount(minlength=len(p))[None], p[None])
    assert statistic < threshold
