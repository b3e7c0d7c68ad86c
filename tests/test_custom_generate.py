"""``target.generate(**inputs, custom_generate=dispatched(bundle))``: transformers' arguments, transformers' answers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
    TextIteratorStreamer,
)
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.generation.stopping_criteria import MaxLengthCriteria
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateDecoderOnlyOutput

from dispatch_rl import dispatched
from dispatch_rl.config import ModelSource
from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.loading import resolve
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.errors import UserError
from dispatch_rl.runtime.custom_generate import DispatchedGenerate
from tests.bundles import pocket_bundle, write
from tests.test_lossless import own_text

TARGET = resolve(ModelSource("pocket:target"))
PROMPTS = ["Problem: Compute 48 + 29.\n<think>\n", "def add(a, b):\n    return", "x", "import os\nimport sys\n\n\nclass Reader:\n"]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    """The target as anybody loads it."""
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(TARGET, dtype=torch.float32)
    return loaded


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    """The target's."""
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(TARGET)
    return loaded


@pytest.fixture(scope="module")
def custom(pocket: Family, tmp_path_factory: pytest.TempPathFactory) -> DispatchedGenerate:
    """What ``generate`` takes; the students are loaded from where the bundle says."""
    return dispatched(write(pocket_bundle(pocket), tmp_path_factory.mktemp("bundles") / "random"))


@pytest.fixture(scope="module")
def inputs(tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
    """The first prompt as ``generate`` takes it."""
    return dict(tokenizer(PROMPTS[0], return_tensors="pt"))


class Words(BaseStreamer):
    """Remembers what it was given."""

    def __init__(self) -> None:
        self.given: list[list[int]] = []
        self.ended = False

    def put(self, value: Tensor) -> None:
        self.given.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended = True


def generate(model: PreTrainedModel, **options: Any) -> Any:
    """Call ``generate``, whose type is a maze; it warns of a length that is not given."""
    if "max_length" not in options:
        options.setdefault("max_new_tokens", 8)
    return model.generate(**options)  # type: ignore[operator]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_is_plain_generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, custom: DispatchedGenerate, prompt: str
) -> None:
    """Token for token, up to a limit or the end of the text; a streamer is given the same in the same order."""
    inputs = tokenizer(prompt, return_tensors="pt")
    for limit in (1, 2, 17, 200):
        plain, ours = Words(), Words()
        expected = generate(model, **inputs, max_new_tokens=limit, do_sample=False, streamer=plain)
        found = generate(model, **inputs, max_new_tokens=limit, do_sample=False, streamer=ours, custom_generate=custom)
        assert torch.equal(found, expected)
        assert (ours.given, ours.ended) == (plain.given, True)
        assert torch.equal(generate(model, **inputs, max_new_tokens=limit, do_sample=False, custom_generate=custom), expected)


def test_sampled_text_is_that_of_its_seed(
    model: PreTrainedModel, pocket: Family, inputs: dict[str, Tensor], custom: DispatchedGenerate
) -> None:
    """It is the target's own under the same temperature, top-k and top-p; the default top-k is transformers'; torch's seed will do, too."""
    options = {"max_new_tokens": 40, "do_sample": True, "temperature": 0.9, "top_p": 0.95, "custom_generate": custom}
    found = generate(model, **inputs, **options, seed=5)
    assert custom.last is not None
    prompt, text = inputs["input_ids"][0].tolist(), list(custom.last.tokens)
    assert found[0].tolist() == [*prompt, *text]
    assert text == own_text(pocket, prompt, text, Sampling(0.9, top_k=50, top_p=0.95, seed=5))
    torch.manual_seed(1)
    first = generate(model, **inputs, **options)
    assert not torch.equal(first, generate(model, **inputs, **options))
    torch.manual_seed(1)
    assert torch.equal(first, generate(model, **inputs, **options))


def test_the_answer_is_transformers_own(model: PreTrainedModel, inputs: dict[str, Tensor], custom: DispatchedGenerate) -> None:
    """``return_dict_in_generate`` gives its output class; what it took is told beside it."""
    found = generate(model, **inputs, max_new_tokens=8, do_sample=False, return_dict_in_generate=True, custom_generate=custom)
    assert isinstance(found, GenerateDecoderOnlyOutput)
    assert found.sequences.shape == (1, inputs["input_ids"].shape[1] + 8)
    assert custom.last is not None
    assert custom.last.metrics["num_emitted_tokens"] == 7


def test_stopping_criteria_are_asked_after_every_token(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, inputs: dict[str, Tensor], custom: DispatchedGenerate
) -> None:
    """So the text ends where plain generation ends; stop strings, other end tokens, one's own rule, a limit that the prompt has reached."""

    class Sevens(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
            return torch.tensor([input_ids.shape[1] % 7 == 0])

    plain = generate(model, **inputs, max_new_tokens=60, do_sample=False)[0].tolist()
    options: list[dict[str, Any]] = [
        {"stopping_criteria": StoppingCriteriaList([Sevens()])},
        {"stopping_criteria": StoppingCriteriaList([StopStringCriteria(tokenizer, ["numbers"])])},
        *({"stopping_criteria": StoppingCriteriaList([MaxLengthCriteria(limit)])} for limit in (1, inputs["input_ids"].shape[1])),
        {"eos_token_id": [plain[20], plain[30]]},
        {"max_length": 21},
    ]
    for option in options:
        limit = {} if "max_length" in option else {"max_new_tokens": 60}
        expected = generate(model, **inputs, **limit, do_sample=False, **option)
        assert torch.equal(generate(model, **inputs, **limit, do_sample=False, **option, custom_generate=custom), expected)
        assert expected.shape[1] < len(plain)


def test_a_text_streamer_shows_the_text(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, inputs: dict[str, Tensor], custom: DispatchedGenerate
) -> None:
    """The usual streamers work as they are."""
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    found = generate(model, **inputs, max_new_tokens=20, do_sample=False, streamer=streamer, custom_generate=custom)
    assert "".join(streamer) == tokenizer.decode(found[0, inputs["input_ids"].shape[1] :])


class Uninvited(LogitsProcessor):
    """Changes what may be said."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 2}, "num_beams"),
        ({"num_return_sequences": 2, "do_sample": True}, "num_return_sequences"),
        ({"repetition_penalty": 1.2}, "repetition_penalty"),
        ({"no_repeat_ngram_size": 2}, "no_repeat_ngram_size"),
        ({"min_new_tokens": 3}, "min_new_tokens"),
        ({"min_p": 0.1, "do_sample": True}, "min_p"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens"),
        ({"bad_words_ids": [[5]]}, "bad_words_ids"),
        ({"output_scores": True, "return_dict_in_generate": True}, "output_scores"),
        ({"cache_implementation": "static"}, "cache_implementation"),
        ({"synced_gpus": True}, "synced_gpus"),
        ({"logits_processor": LogitsProcessorList([Uninvited()])}, "logits_processor: dispatched decoding cannot apply Uninvited"),
        ({"logits_processor": LogitsProcessorList([TemperatureLogitsWarper(0.5)])}, "TemperatureLogitsWarper needs do_sample=True"),
        *(
            ({"logits_processor": LogitsProcessorList([warper]), "do_sample": True, "top_k": 0}, f"cannot apply {type(warper).__name__}")
            for warper in (
                TopPLogitsWarper(0.5, min_tokens_to_keep=5),
                TopPLogitsWarper(0.5, filter_value=-1.0),
                TopKLogitsWarper(2, min_tokens_to_keep=5),
                TopKLogitsWarper(2, filter_value=-1.0),
            )
        ),
        ({"prefix_allowed_tokens_fn": lambda batch, ids: [1, 2]}, "cannot apply PrefixConstrainedLogitsProcessor"),
    ],
)
def test_unsupported_options_are_refused_by_name(
    model: PreTrainedModel, inputs: dict[str, Tensor], custom: DispatchedGenerate, options: dict[str, Any], message: str
) -> None:
    """One line that begins with the option; nothing is silently ignored."""
    with pytest.raises(UserError) as caught:
        generate(model, **inputs, max_new_tokens=5, custom_generate=custom, **{"do_sample": False, **options})
    assert str(caught.value).startswith(message.partition(":")[0]) or message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unsupported_inputs_are_refused_by_name(model: PreTrainedModel, inputs: dict[str, Tensor], custom: DispatchedGenerate) -> None:
    """An assistant, two texts, padding, positions that do not count from 0, a cache that holds something, embeddings."""
    with pytest.raises(UserError, match="assistant_model"):
        generate(model, **inputs, custom_generate=custom, assistant_model=model)
    two = {key: value.repeat(2, 1) for key, value in inputs.items()}
    with pytest.raises(UserError, match="one text at a time, not 2"):
        generate(model, **two, custom_generate=custom)
    padded = {**inputs, "attention_mask": inputs["attention_mask"].clone()}
    padded["attention_mask"][0, 0] = 0
    with pytest.raises(UserError, match="attention_mask"):
        generate(model, **padded, custom_generate=custom)
    plain, positions = generate(model, **inputs), torch.arange(inputs["input_ids"].shape[1])[None]
    assert torch.equal(generate(model, **inputs, position_ids=positions, custom_generate=custom), plain)
    for others in (positions + 100, 2 * positions):
        with pytest.raises(UserError, match="position_ids: dispatched decoding counts positions from 0"):
            generate(model, **inputs, position_ids=others, custom_generate=custom)
    read: Any = model(inputs["input_ids"][:, :-1], use_cache=True)
    with pytest.raises(UserError, match="past_key_values"):
        generate(model, **inputs, custom_generate=custom, past_key_values=read.past_key_values)
    with pytest.raises(UserError, match="input_ids: the prompt is empty"):
        generate(model, inputs_embeds=model.get_input_embeddings()(inputs["input_ids"]), custom_generate=custom)


def test_a_model_of_another_family_is_refused(pocket: Family, inputs: dict[str, Tensor], tmp_path: Path) -> None:
    """The bundle belongs to its target: another model is another family, given or loaded."""
    path = write(pocket_bundle(pocket), tmp_path / "bundle")
    other: PreTrainedModel = AutoModelForCausalLM.from_pretrained(resolve(ModelSource("pocket:large")), dtype=torch.float32)
    with pytest.raises(UserError, match="fingerprint: it was made for the family"):
        generate(other, **inputs, custom_generate=dispatched(path))
    with pytest.raises(UserError, match="the family's target is another model"):
        generate(other, **inputs, custom_generate=dispatched(path, family=pocket))
    loaded = dispatched(path, family=pocket)
    assert generate(pocket.target.model, **inputs, max_new_tokens=4, custom_generate=loaded).shape == (1, 17)
