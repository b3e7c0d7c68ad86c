"""Text that comes piece by piece is the text that is decoded at once, with tokenizers that write a word's space into its token too."""

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dispatch_rl.runtime.text import Detokenizer

SPECIAL = ["<unk>", "<s>", "</s>", "[TOOL]"]
WORDS = "the cat sat on the mat and def f(x): return x + 12345 # naive Problem: 7 * 8 = 56."
LLAMA = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
DECODERS = {"llama": LLAMA, "metaspace": decoders.Metaspace()}


@pytest.fixture(scope="module", params=DECODERS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    """A tokenizer such as Llama 2's or Mistral's: the first word of a text loses its space when it is decoded."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    made.decoder = DECODERS[request.param]
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    made.train_from_iterator([WORDS] * 20, trainers.BpeTrainer(vocab_size=400, special_tokens=tokens, show_progress=False))
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>", additional_special_tokens=["[TOOL]"]
    )


def ids(tokenizer: PreTrainedTokenizerFast, *words: str) -> list[int]:
    """Return the ids of texts and special tokens, one behind the other."""
    return [token for word in words for token in tokenizer.encode(word, add_special_tokens=False)]


def whole(tokenizer: PreTrainedTokenizerFast, prompt: Sequence[int], new: Sequence[int]) -> str:
    """Return what is behind the prompt when all is decoded at once."""
    before, text = (str(tokenizer.decode(list(tokens), skip_special_tokens=True)) for tokens in (prompt, [*prompt, *new]))
    return text.removeprefix(before)


def streamed(tokenizer: PreTrainedTokenizerFast, prompt: Sequence[int], pieces: Sequence[Sequence[int]]) -> str:
    """Return what comes when the tokens come in pieces."""
    detokenizer = Detokenizer(tokenizer, prompt)
    return "".join([*map(detokenizer.push, pieces), detokenizer.finish()])


def test_a_word_behind_a_special_token_keeps_its_space(tokenizer: PreTrainedTokenizerFast) -> None:
    """Such a token is no beginning of a text."""
    new = ids(tokenizer, "the cat sat", "[TOOL]", "the cat sat")
    assert streamed(tokenizer, ids(tokenizer, "<s>", "the mat"), [[token] for token in new]) == " the cat sat the cat sat"
    assert streamed(tokenizer, [], [[token] for token in new]) == "the cat sat the cat sat"


@pytest.mark.parametrize("count", [1, 6, 7, 40])
def test_a_word_behind_a_prompt_that_ends_in_special_tokens_keeps_its_space(tokenizer: PreTrainedTokenizerFast, count: int) -> None:
    """However many there are, as behind the last turn of a chat."""
    prompt = ids(tokenizer, "<s>", "the mat", *["[TOOL]"] * count)
    assert streamed(tokenizer, prompt, [[token] for token in ids(tokenizer, "the cat")]) == " the cat"
    assert streamed(tokenizer, prompt[-count:], [[token] for token in ids(tokenizer, "the cat")]) == "the cat"


def test_pieces_make_the_text_that_is_decoded_at_once(tokenizer: PreTrainedTokenizerFast) -> None:
    """Words, blanks, special tokens and characters of several bytes, in any order, in pieces of any length, behind any prompt."""
    dice = random.Random(0)
    atoms = [ids(tokenizer, word) for word in [*SPECIAL[1:], "the", "cat", "x", "7 *"]]
    vocabulary = tokenizer.get_vocab()
    atoms += [[vocabulary["▁"]]]
    characters = [[vocabulary[f"<0x{byte:02X}>"] for byte in sign.encode()] for sign in ("é", "€", "😀")]
    atoms += characters if tokenizer.decode(characters[2]) == "😀" else []
    for _ in range(500):
        prompt, new = ([token for atom in dice.choices(atoms, k=dice.randrange(20)) for token in atom] for _ in range(2))
        ends = [0, *sorted(dice.choices(range(len(new) + 1), k=dice.randrange(20))), len(new)]
        pieces = [new[start:end] for start, end in pairwise(ends)]
        assert streamed(tokenizer, prompt, pieces) == whole(tokenizer, prompt, new), (prompt, pieces)
