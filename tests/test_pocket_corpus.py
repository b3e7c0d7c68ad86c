"""What a family is trained on."""

from pathlib import Path
from zlib import crc32

import numpy as np
import pytest

from dispatch_rl.pocket import stdlib
from dispatch_rl.pocket.corpus import Corpus, encode_files, folder_files
from dispatch_rl.pocket.tokenizer import END_OF_TEXT
from tests.test_pocket_training import CORPUS, FILES, TOKENIZER


def test_batches_are_functions_of_seed_and_step() -> None:
    """Asked in any order, by any corpus of the same seed, a step has the same tokens; another step or seed has others."""
    first = [CORPUS.batch(step, 4, 0.5) for step in range(4)]
    again = Corpus(TOKENIZER, FILES, window=32, seed=5)
    for step in (3, 0, 2, 1):
        np.testing.assert_array_equal(again.batch(step, 4, 0.5), first[step])
    other = Corpus(TOKENIZER, FILES, window=32, seed=6).batch(0, 4, 0.5)
    assert len({batch.tobytes() for batch in [*first, other]}) == 5


@pytest.mark.parametrize(("share", "reasoning"), [(0.0, 0), (0.67, 2), (1.0, 3)])
def test_batches_have_their_shape_and_share(share: float, reasoning: int) -> None:
    """Three rows of window + 1 tokens: first excerpts from the files, then, so many, rows that begin with a problem."""
    batch = CORPUS.batch(9, 3, share)
    assert batch.shape == (3, 33)
    assert batch.dtype == np.int64
    excerpts = {FILES[i : i + 33].tobytes() for i in range(len(FILES) - 32)}
    assert [str(TOKENIZER.decode(row.tolist())).startswith("Problem: ") for row in batch] == [i >= 3 - reasoning for i in range(3)]
    assert [row.astype(np.int32).tobytes() in excerpts for row in batch] == [i < 3 - reasoning for i in range(3)]


def test_batches_hold_no_held_out_problem() -> None:
    """Of the problems in the reasoning rows none belongs to the sixteenth that is held out."""
    rows = Corpus(TOKENIZER, FILES, window=2048, seed=1).batch(0, 24, 1.0)
    documents = [text for row in rows for text in str(TOKENIZER.decode(row.tolist())).split(END_OF_TEXT)]
    found = [text[: text.index("<think>\n") + 8] for text in documents if "<think>\n" in text]
    assert len(found) > 100
    assert all(crc32(prompt.encode()) % 16 for prompt in found)


def test_documents_are_ended(tmp_path: Path) -> None:
    """Every file, also an empty one, is followed by the end-of-text token."""
    texts = ["def f():\n    return 1\n", "", "naïve\n"]
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.txt").write_text(text)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    files = folder_files([tmp_path])
    assert [path.name for path in files] == ["0.txt", "1.txt", "2.txt"]
    tokens = encode_files(TOKENIZER, files)
    assert TOKENIZER.decode(tokens.tolist()) == "".join(text + END_OF_TEXT for text in texts)
    assert tokens.dtype == np.int32


def test_training_never_reads_held_out_files() -> None:
    """The library's held-out modules are not among those to train on, under any name."""
    training, held_out = list(stdlib.training_files()), list(stdlib.held_out_files())
    assert len(held_out) >= 10
    assert len(training) > 10 * len(held_out)
    assert not {path.resolve() for path in training} & {path.resolve() for path in held_out}
