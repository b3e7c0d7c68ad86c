"""The runtime: the target's own text from an exported policy, whole or as it comes, and the learner's own decisions."""

import gc
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.vec_env import DummyVecEnv

import dispatch_rl
from dispatch_rl.config import DQNConfig, PromptConfig, QRDQNConfig, TrainConfig
from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.features import feature_table
from dispatch_rl.errors import UserError
from dispatch_rl.learning import Learner, build_learner, extract_policy
from dispatch_rl.policies.base import Observation, Policy
from dispatch_rl.policies.network import NetworkPolicy
from dispatch_rl.prompts import prompts
from dispatch_rl.runtime.decoder import AdaptiveDecoder
from dispatch_rl.runtime.text import Detokenizer, StopStrings
from tests.bundles import ARMS, pocket_bundle, write
from tests.test_lossless import own_text, random_sampling

PROMPT = "Problem: Compute 48 + 29.\n<think>\n"


class Seen(Policy):
    """Remembers what a policy saw and chose."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.seen: list[tuple[Observation, int]] = []

    def __call__(self, observation: Observation) -> int:
        self.seen.append((observation.copy(), self.policy(observation)))
        return self.seen[-1][1]


@pytest.fixture(scope="module")
def decoder(pocket: Family, tmp_path_factory: pytest.TempPathFactory) -> AdaptiveDecoder:
    """A decoder from a bundle whose network changes its mind all the time."""
    path = write(pocket_bundle(pocket), tmp_path_factory.mktemp("bundles") / "random")
    return AdaptiveDecoder.from_bundle(path, pocket)


def test_two_hundred_texts_are_the_targets_own(decoder: AdaptiveDecoder, pocket: Family) -> None:
    """Random prompts, seeds, temperatures, top-k and top-p, greedy and coupled; many arms are used."""
    rng, arms = Random(7), set()
    for prompt in islice(prompts(PromptConfig(), pocket, "test", seed=7), 200):
        s = random_sampling(rng)
        options: dict[str, Any] = {"temperature": s.temperature, "top_k": s.top_k, "top_p": s.top_p, "seed": s.seed}
        text = decoder.generate(prompt.tokens, rng.randint(1, 24), **options)
        assert list(text.tokens) == own_text(pocket, prompt.tokens, text.tokens, s), (prompt, s)
        assert text.failure is None
        arms |= set(text.metrics["arm_shares"])
    assert len(arms) > 3


class _Idle(gym.Env[Observation, int]):
    """Has the right spaces; nothing is learned in it."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (13,), np.float32)
        self.action_space: Any = spaces.Discrete(len(ARMS))

    def reset(self, **_: Any) -> tuple[Observation, dict[str, Any]]:
        return np.zeros(13, dtype=np.float32), {}


@pytest.mark.parametrize("algo", ["ppo", "dqn", "qrdqn"])
def test_decisions_are_the_learners(pocket: Family, algo: str, tmp_path: Path) -> None:
    """On every observation of real decoding Stable-Baselines3 chooses the same arm; its logits agree within float32 rounding."""
    config = TrainConfig(algo=algo, dqn=DQNConfig(buffer_size=10), qrdqn=QRDQNConfig(buffer_size=10))  # type: ignore[arg-type]
    model = build_learner(DummyVecEnv([_Idle]), feature_table(("small", "medium", "large")), config, None)
    with torch.no_grad():  # an untrained learner prefers nothing, and everything would be a near tie
        _last(model).weight.mul_(100 if algo == "ppo" else 10)
    decoder = AdaptiveDecoder.from_bundle(write(pocket_bundle(pocket, extract_policy(model)), tmp_path / "bundle"), pocket)
    network = decoder.policy
    assert isinstance(network, NetworkPolicy)
    decoder.policy = seen = Seen(network)
    for prompt in islice(prompts(PromptConfig(), pocket, "test", seed=3), 12):
        decoder.generate(prompt.tokens, 60, temperature=0.8, seed=prompt.seed)
    observations = np.stack([observation for observation, _ in seen.seen])
    actions, _ = model.predict(observations, deterministic=True)
    assert [action for _, action in seen.seen] == actions.tolist()
    assert len(set(actions.tolist())) > 1
    ours = torch.from_numpy(np.stack([network.logits(observation) for observation in observations]))
    theirs = _logits(model, torch.from_numpy(observations))
    if algo == "ppo":  # PPO keeps them normalised
        ours = ours.log_softmax(-1)
    torch.testing.assert_close(ours, theirs, atol=64 * float(theirs.abs().max()) * torch.finfo(torch.float32).eps, rtol=0)


def _last(model: Learner) -> Any:
    if isinstance(model, PPO):
        return model.policy.action_net
    return model.q_net.q_net[-1] if isinstance(model, DQN) else model.quantile_net.quantile_net[-1]


def _logits(model: Learner, observations: torch.Tensor) -> torch.Tensor:
    policy: Any = model.policy
    with torch.no_grad():
        if isinstance(model, PPO):
            logits: torch.Tensor = policy.get_distribution(observations).distribution.logits
        else:
            logits = policy.q_net(observations) if isinstance(model, DQN) else policy.quantile_net(observations).mean(1)
    return logits


def test_a_stream_is_the_text(decoder: AdaptiveDecoder) -> None:
    """Tokens and characters joined are the text; students and rounds are told; the first token is no round's."""
    options: dict[str, Any] = {"temperature": 0.8, "seed": 4}
    whole = decoder.generate(PROMPT, 60, **options)
    tokens = list(decoder.stream(PROMPT, 60, **options))
    assert decoder.last is not None
    assert tuple(token.id for token in tokens) == whole.tokens == decoder.last.tokens
    assert "".join(token.text for token in tokens) == whole.text == decoder.last.text
    assert tokens[0].round is None
    rounds = [token.round for token in tokens[1:] if token.round is not None]
    for record in {id(record): record for record in rounds}.values():
        drafted = [token.student for token in tokens if token.round is record and token.student]
        assert drafted == list(record.students[: record.num_accepted])


def test_metrics_have_vllms_names_and_meaning(decoder: AdaptiveDecoder) -> None:
    """They add up, and are JSON even for a text without a round."""
    text = decoder.generate(PROMPT, 40, temperature=0.8, seed=4)
    found = text.metrics
    assert found["num_emitted_tokens"] == len(text.tokens) - 1
    assert found["mean_acceptance_length"] == found["num_emitted_tokens"] / found["num_rounds"]
    assert found["draft_acceptance_rate"] == found["num_accepted_tokens"] / found["num_draft_tokens"]
    assert sum(found["acceptance_histogram"]) == found["num_rounds"]
    assert found["tokens_per_second"] == pytest.approx(1000 / found["latency_ms_per_token"])
    assert 0 < found["decision_overhead"] < 1
    assert decoder.generate(PROMPT, 1).metrics["latency_ms_per_token"] is None


@pytest.mark.parametrize("text", ["naïve café — 你好, 世界! 🙂👩‍🚀 ok", "é", "🙂", "  two spaces\n\ttab", "a�b"])
def test_never_half_a_character(pocket: Family, text: str) -> None:
    """Token by token every piece is whole characters, although one character is several tokens."""
    prompt, tokens = pocket.encode("x ="), pocket.tokenizer(text, add_special_tokens=False)["input_ids"]
    detokenizer = Detokenizer(pocket.tokenizer, prompt)
    pieces = [detokenizer.push([token]) for token in tokens]
    assert "".join(pieces) + detokenizer.finish() == text
    if "�" not in text:
        assert not any("�" in piece for piece in pieces)
        assert "".join(pieces) == text


def test_a_text_cut_within_a_character_says_so_at_its_end(pocket: Family) -> None:
    """What never became a character is given out last, and special tokens never."""
    tokens = pocket.tokenizer("a🙂", add_special_tokens=False)["input_ids"][:-1]
    detokenizer = Detokenizer(pocket.tokenizer, [])
    assert detokenizer.push(tokens) == ""
    assert detokenizer.finish().startswith("a")
    ended = Detokenizer(pocket.tokenizer, [])
    assert ended.push([*pocket.encode("end"), *pocket.eos_token_ids]) == "end"


def test_stop_strings_end_the_text_before_them(decoder: AdaptiveDecoder) -> None:
    """The text is what stood before, the tokens reach to its end; a stream never shows the beginning of one."""
    whole = decoder.generate(PROMPT, 60)
    place = whole.text.index("numbers")
    text = decoder.generate(PROMPT, 60, stop=["numbers are", "never there"])
    assert (text.text, text.finish_reason) == (whole.text[:place], "stop")
    assert text.tokens == whole.tokens[: len(text.tokens)]
    pieces = [token.text for token in decoder.stream(PROMPT, 60, stop="numbers are")]
    assert "".join(pieces) == text.text
    assert decoder.generate(PROMPT, 60, stop="never there").text == whole.text


def test_stop_strings_by_hand() -> None:
    """What may be a beginning is held back until it is one or is none; the earliest of several ends the text."""
    stop = StopStrings(["END", "EN."])
    assert [stop.push(piece) for piece in ("aE", "N", "x", "EE", "N", "D b")] == ["a", "", "ENx", "E", "", ""]
    assert stop.found
    other = StopStrings(["END"])
    assert (other.push("..EN"), other.finish(), other.found) == ("..", "EN", False)
    with pytest.raises(UserError, match="stop: an empty string"):
        StopStrings([""])


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([], {}, "prompt: it is empty"),
        ([5, 2048], {}, "prompt: token 2048 is not in 0 ... 2047"),
        ("a", {"max_new_tokens": 0}, "max_new_tokens: 0"),
        ("a", {"temperature": -1}, "sampling.temperature: -1"),
        ("a", {"stop": [""]}, "stop: an empty string"),
        (None, {}, "prompt: a NoneType is neither a text nor a list of token ids; one prompt at a time"),
        (["a", "b"], {}, "prompt: a list is neither"),
        (torch.tensor([[5, 6]]), {}, "prompt: a Tensor is neither"),
        ([1.0, 2.5], {}, "prompt: a list is neither"),
        ("caf\udce9", {}, "prompt: it holds bytes that are not UTF-8"),
        ("a", {"max_new_tokens": 2.5}, r"max_new_tokens: 2\.5 is not an integer"),
        ("a", {"max_new_tokens": None}, "max_new_tokens: None is not an integer"),
        ("a", {"max_new_tokens": float("nan")}, "max_new_tokens: nan is not an integer"),
        ("a", {"method": "magic"}, "sampling.method: 'magic'"),
        ("a", {"stop": 5}, "stop: 5 is neither a string nor several"),
        ("a", {"stop": ["b", 5]}, r"stop: \['b', 5\] is neither"),
    ],
)
def test_impossible_requests_are_refused_at_once(decoder: AdaptiveDecoder, prompt: Any, options: dict[str, Any], message: str) -> None:
    """By ``stream`` too, before anything is asked of it."""
    for call in (decoder.generate, decoder.stream):
        with pytest.raises(UserError, match=message):
            call(prompt, **options)


def test_three_thousand_tokens_leave_nothing_behind(decoder: AdaptiveDecoder) -> None:
    """From text to text no object stays, and no cache moves."""

    def left() -> tuple[int, list[int]]:
        gc.collect()
        return len(gc.get_objects()), [address for model in decoder.family.models() for address in model.cache.addresses()]

    written = 0
    before: tuple[int, list[int]] | None = None
    for seed in range(40):
        written += len(decoder.generate(PROMPT, 160, temperature=1.5, seed=seed).tokens)
        before = left() if seed == 4 else before
    assert before is not None
    assert written > 3000
    after = left()
    assert after[1] == before[1]
    assert after[0] - before[0] < 50


def test_the_package_brings_the_decoder() -> None:
    """``dispatch_rl.AdaptiveDecoder`` is there, and what is not there is an attribute error."""
    assert dispatch_rl.AdaptiveDecoder is AdaptiveDecoder
    with pytest.raises(AttributeError, match="has no attribute 'Decoder'"):
        dispatch_rl.Decoder  # noqa: B018
