"""What an informed policy sees, and that the network it is taught with and the one that is replayed are the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dispatch_rl.config import PolicyIterationConfig
from dispatch_rl.decoding.arms import Arm
from dispatch_rl.errors import UserError
from dispatch_rl.replay.episodes import Episodes
from dispatch_rl.study.informed import InformedIteration, InformedWorld, known
from tests.recordings import Recorded
from tests.traces import made_up_profile, made_up_world


@pytest.fixture(scope="module")
def world(recorded: Recorded) -> InformedWorld:
    """A recording with what the target knows."""
    return InformedWorld(recorded.world, known(recorded.family, recorded.world.traces))


def test_the_target_s_last_state_predicts_the_last_token(recorded: Recorded, world: InformedWorld) -> None:
    """Its head makes of the first half the distribution whose entropy was recorded; the second half is the token's embedding."""
    traces = world.traces
    model: Any = recorded.family.target.model
    size = world.known.shape[1] // 2
    states = world.states_after_each_position()
    assert traces.path is not None
    embedding = model.get_input_embeddings().weight.detach()[torch.from_numpy(traces.path.astype(np.int64))]
    normed = embedding / embedding.square().mean(-1, keepdim=True).sqrt()
    np.testing.assert_allclose(world.known[states, size:], normed.numpy(), rtol=1e-4, atol=1e-5)
    # The last norm's weights come before the head; what is divided out here is one number per state, which the entropy pins down.
    text = int(world.texts[0])
    place = slice(int(traces.offsets[text]), int(traces.offsets[text + 1]))
    tokens = torch.tensor([*traces.prompt(text), *(traces.path_tokens(text) or ())])
    with torch.inference_mode():
        hidden = model(tokens[None], output_hidden_states=True).hidden_states[-1][0, -traces.lengths[text] - 1 : -1]
        logits = model.get_output_embeddings()(hidden)[:, : recorded.family.vocab]
    entropies = torch.special.entr(logits.softmax(-1)).sum(-1)
    np.testing.assert_allclose(entropies.numpy(), traces.floats["entropy"][place], atol=1e-3)
    direction = torch.nn.functional.cosine_similarity(hidden, torch.from_numpy(world.known[states[place], :size]))
    np.testing.assert_allclose(direction.numpy(), 1, atol=1e-4)


def test_before_the_first_token_nothing_is_known(world: InformedWorld) -> None:
    """The first state of every text."""
    first = world.traces.offsets[:-1] + np.arange(world.traces.num_texts)
    assert not world.known[first].any()
    assert world.known[world.states_after_each_position()].any(axis=1).all()


def test_the_policy_is_the_network_that_was_taught(world: InformedWorld) -> None:
    """Which looks up what its first layer makes of a state."""
    learner = InformedIteration(world, PolicyIterationConfig(iterations=1, states=64, n_epochs=1, net_arch=[12, 8]), 0)
    learner.step()
    episodes = Episodes(world, 16)
    rng = np.random.default_rng(0)
    for _ in range(3):
        observed = episodes.observations()
        with torch.no_grad():
            taught = learner.network(learner._inputs(observed)).numpy()
        np.testing.assert_allclose(learner.policy().batch_logits(observed), taught, atol=1e-5)
        episodes.keep(~episodes.step(rng.integers(len(world.arms), size=episodes.count)).finished)


def test_traces_without_tokens_are_refused(recorded: Recorded, tmp_path: Path) -> None:
    """In one line."""
    foreign = made_up_world(tmp_path / "x", [{"match_a": [True, False, True]}], [Arm("a", 2)], made_up_profile(10, a=1))
    with pytest.raises(UserError, match="the recording has no tokens"):
        known(recorded.family, foreign.traces)
