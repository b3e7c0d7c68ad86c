"""A model that lives on beside ``dispatched``: it can be trained, and what its weights were is not taken for what they are."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from dispatch_rl import dispatched
from dispatch_rl.config import FamilyConfig
from dispatch_rl.decoding.families import Family, load_family
from dispatch_rl.errors import UserError
from tests.bundles import pocket_bundle, write
from tests.test_custom_generate import TARGET, generate

INPUTS = {"input_ids": torch.tensor([[5, 6, 7, 8]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}


@pytest.fixture(scope="module")
def bundle(pocket: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a random network."""
    return write(pocket_bundle(pocket), tmp_path_factory.mktemp("bundles") / "random")


@pytest.fixture
def model() -> PreTrainedModel:
    """The target as anybody loads it; a new one for every test."""
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(TARGET, dtype=torch.float32)
    return loaded


def train(model: PreTrainedModel) -> None:
    """Take a step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model(**INPUTS, labels=INPUTS["input_ids"]).loss.backward()
    optimizer.step()


def turn(model: PreTrainedModel) -> None:
    """Change a few weights where they are."""
    with torch.no_grad():
        model.get_parameter("model.norm.weight").neg_()


def load(model: PreTrainedModel, assign: bool = False) -> None:
    """Load others."""
    model.load_state_dict({name: tensor.flip(0).clone() for name, tensor in model.state_dict().items()}, assign=assign)


CHANGES: dict[str, Callable[[PreTrainedModel], object]] = {
    "trained": train,
    "changed in place": turn,
    "others loaded": load,
    "others put in their place": lambda model: load(model, assign=True),
    "another type": lambda model: model.bfloat16(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_other_weights_are_refused(model: PreTrainedModel, bundle: Path, change: Callable[[PreTrainedModel], object]) -> None:
    """After a text, what holds copies of the weights does not write with them; what changes no weight changes nothing."""
    custom = dispatched(bundle)
    first = generate(model, **INPUTS, do_sample=False, custom_generate=custom)
    model.train().requires_grad_(False).eval().requires_grad_(True)
    assert torch.equal(generate(model, **INPUTS, do_sample=False, custom_generate=custom), first)
    change(model)
    with pytest.raises(UserError, match="custom_generate: the model's weights have changed since its first text"):
        generate(model, **INPUTS, do_sample=False, custom_generate=custom)


def test_weights_of_a_given_family_count_from_then_on(bundle: Path) -> None:
    """Before the first text, too."""
    family = load_family(FamilyConfig())
    custom = dispatched(bundle, family=family)
    turn(family.target.model)
    with pytest.raises(UserError, match="the model's weights have changed"):
        generate(family.target.model, **INPUTS, do_sample=False, custom_generate=custom)


def test_a_first_text_in_inference_mode_leaves_the_model_trainable(model: PreTrainedModel, bundle: Path) -> None:
    """The text is the usual one, and every weight gets a gradient afterwards."""
    with torch.inference_mode():
        found = generate(model, **INPUTS, do_sample=False, custom_generate=dispatched(bundle))
    assert torch.equal(found, generate(model, **INPUTS, do_sample=False))
    train(model)
    assert all(weight.grad is not None for weight in model.parameters())


def test_two_dispatchers_may_share_a_model(model: PreTrainedModel, bundle: Path) -> None:
    """Loading students beside a model for a second time changes none of its weights: the first goes on."""
    first, second = dispatched(bundle), dispatched(bundle)
    texts = [generate(model, **INPUTS, do_sample=False, custom_generate=custom) for custom in (first, second, first, second)]
    assert all(torch.equal(text, texts[0]) for text in texts)
    turn(model)
    for custom in (first, second):
        with pytest.raises(UserError, match="the model's weights have changed"):
            generate(model, **INPUTS, do_sample=False, custom_generate=custom)
