"""Digits stand alone, and no text is lost but its decomposed letters, which are composed."""

from pathlib import Path
from unicodedata import is_normalized, normalize

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2Config

import dispatch_rl
from dispatch_rl.pocket.tokenizer import END_OF_TEXT, train_tokenizer

PACKAGED = Path(dispatch_rl.__file__).parent / "pocket" / "family" / "target"
TEXTS = (
    "def add(first, second):\n    return first + second\n\n\nprint(add(12, 12))\n" * 3,
    "Problem: Compute 1212 + 1212.\n<think>\nFirst, I look at what is asked. 12 and 12 and 2024 and 2024.\n</think>\n" * 3,
    "The quick brown fox jumps over the lazy dog, and the lazy dog doesn't mind. Größe, naïve, 東京, x1y2z3.\n",
    "Whoever decodes speculatively verifies several drafted tokens at once; nobody notices which student drafted them.\n",
)
ODD_TEXTS = (
    "",
    " ",
    "\t\tif x:\r\n\t\t\treturn\r\n",
    "a \n  b\n\n\n   c  \n ",
    " leading, trailing and  double  spaces ",
    "don't , won't . I 'm n't ? !",
    "👩\u200d👩\u200d👧 🇩🇪 👍🏽 ☃️",
    "é ﬁ Ⅷ ½ ²³ ٣٤ 四",
    "\u202eright to left\u202c שלום مرحبا",
    "\x00\x01\x7f\ufeff\ufffd\u2028\u2029\x85",
    "\U0010ffff\U0001f600\ud7ff\ue000",
    "0123456789 3.14159e-10 0x7f 1,000,000",
    "▁Ġ Ċ <0x0A> ##ing </s> <unk>",
)


@pytest.fixture(scope="module")
def tiny() -> PreTrainedTokenizerBase:
    """A tokenizer of 360 tokens whose texts repeat numbers, so that merges would pay."""
    return train_tokenizer(TEXTS, 360)


@pytest.fixture(scope="module")
def packaged() -> PreTrainedTokenizerBase:
    """The tokenizer that ships with the pocket family."""
    return AutoTokenizer.from_pretrained(PACKAGED)


@pytest.fixture(params=["tiny", "packaged"])
def either(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    """Both, one after the other."""
    tokenizer: PreTrainedTokenizerBase = request.getfixturevalue(request.param)
    return tokenizer


def ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the tokens of ``text``, nothing added."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_the_vocabulary_has_the_asked_size(tiny: PreTrainedTokenizerBase) -> None:
    """360 tokens: 256 bytes, the end of text and 103 merges."""
    assert len(tiny) == tiny.vocab_size == 256 + 1 + 103


def test_the_packaged_vocabulary_is_small(packaged: PreTrainedTokenizerBase) -> None:
    """Between 2048 and 4096 tokens."""
    assert 2_048 <= len(packaged) <= 4_096


def test_merges_are_learnt(either: PreTrainedTokenizerBase) -> None:
    """Frequent words shrink; a tokenizer of bytes alone would not."""
    text = "    return the first\n"
    assert len(ids(either, text)) < len(text) / 2


def test_no_token_holds_a_digit_and_more(either: PreTrainedTokenizerBase) -> None:
    """In the whole vocabulary the only tokens with a digit are the ten digits."""
    with_digit = {token for token in either.get_vocab() if any(character in "0123456789" for character in token)}
    assert with_digit == set("0123456789")


@pytest.mark.parametrize("text", ["1212", "2024-01-31", "x1y2z3", "add(12, 12)", " 12  34\n56\t7", "a1b", "9'll 3's", "v1.2.3rc4"])
def test_every_digit_is_a_token(either: PreTrainedTokenizerBase, text: str) -> None:
    """The tokens that hold digits are the text's digits, in order, one each."""
    tokens = [either.decode([token]) for token in ids(either, text)]
    assert [token for token in tokens if any(map(str.isdigit, token))] == [character for character in text if character.isdigit()]


@pytest.mark.parametrize("text", [*ODD_TEXTS, *TEXTS], ids=ascii)
def test_decoding_gives_the_text_back(either: PreTrainedTokenizerBase, text: str) -> None:
    """Unicode, tabs, CRLF, emoji, spaces before punctuation: nothing is changed and nothing added."""
    assert either.decode(ids(either, text)) == normalize("NFC", text)
    assert either.decode(either.encode(text)) == normalize("NFC", text)


def test_every_character_of_the_first_plane_survives(either: PreTrainedTokenizerBase) -> None:
    """All of Unicode's first 65,536 characters in one text, surrogates and those without a canonical form of their own aside."""
    characters = (chr(code) for code in range(0x10000) if not 0xD800 <= code < 0xE000)
    text = " ".join(character for character in characters if is_normalized("NFC", character))
    assert either.decode(ids(either, text)) == text


@pytest.mark.parametrize(("text", "composed"), [("e\u0301", "é"), ("\u212b", "Å"), ("\u1112\u1161\u11ab", "한")], ids=ascii)
def test_text_is_composed_when_trained_and_when_loaded(either: PreTrainedTokenizerBase, text: str, composed: str) -> None:
    """Decomposed text becomes Unicode's canonical form (NFC): transformers does so to every Qwen2 tokenizer, so training does too."""
    assert ids(either, text) == ids(either, composed)
    assert either.decode(ids(either, text)) == composed


def test_end_of_text_is_one_special_token(either: PreTrainedTokenizerBase) -> None:
    """It ends and pads, is never part of ordinary text, and is left out on request."""
    assert either.eos_token == either.pad_token == END_OF_TEXT
    assert ids(either, f"a{END_OF_TEXT}b").count(either.eos_token_id) == 1
    assert either.eos_token_id not in ids(either, "<|endoftext|")
    assert either.decode(ids(either, f"a{END_OF_TEXT}"), skip_special_tokens=True) == "a"


def test_training_is_deterministic(tiny: PreTrainedTokenizerBase) -> None:
    """The same texts give the same vocabulary."""
    assert train_tokenizer(TEXTS, 360).get_vocab() == tiny.get_vocab()


def test_saving_keeps_everything(tiny: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """A saved tokenizer, loaded again beside a Qwen2 model as families load it, cuts and restores texts alike."""
    tiny.save_pretrained(tmp_path)
    Qwen2Config().save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*ODD_TEXTS, "e\u0301"]:
        assert ids(loaded, text) == ids(tiny, text)
        assert loaded.decode(ids(loaded, text)) == normalize("NFC", text)
