"""Training of a family: exact to the bit, whoever stops it, and published as what it claims to be."""

from dataclasses import replace
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dispatch_rl.pocket import stdlib
from dispatch_rl.pocket.corpus import Corpus, encode_documents, encode_files, folder_files
from dispatch_rl.pocket.recipe import ModelSize, Optimisation, Recipe
from dispatch_rl.pocket.tokenizer import END_OF_TEXT
from dispatch_rl.pocket.training import FamilyTrainer, build_model, family_losses, learning_rate_factor, start_from_layers_of, train_family
from tests.families import tokenizer

TOKENIZER = tokenizer(300)
TARGET, SMALL, WIDE = ModelSize(16, 2, 2, 32), ModelSize(16, 1, 2, 32), ModelSize(24, 1, 3, 40)
FILES = encode_documents(TOKENIZER, [f"line {i} of a file that nobody would want to read\n" for i in range(40)])
CORPUS = Corpus(TOKENIZER, FILES, window=32, seed=5)


def recipe(output: Path, students: dict[str, ModelSize] | None = None) -> Recipe:
    """Return a recipe of six steps: two of the target alone, two with the wide student, two of the small one, as wide as the target."""
    return Recipe(
        output=output,
        seed=5,
        vocab_size=300,
        window=32,
        max_position_embeddings=64,
        batch_rows=3,
        reasoning_share=0.67,
        target=TARGET,
        students={"small": SMALL, "wide": WIDE} if students is None else students,
        optimisation=Optimisation(steps=4, warmup_steps=2, alone_steps=2, last_steps=2),
        device="cpu",
        compile=False,
        threads=1,
    )


def trainer(output: Path, students: dict[str, ModelSize] | None = None) -> FamilyTrainer:
    """Return a trainer that continues what is in ``output``."""
    output.mkdir(exist_ok=True)
    return FamilyTrainer(recipe(output, students), TOKENIZER, CORPUS)


def parameters(trained: FamilyTrainer, model: str | None = None) -> dict[str, Tensor]:
    """Return copies of the parameters of one model or of all."""
    models = trained.models if model is None else {model: trained.models[model]}
    return {f"{name}.{key}": p.detach().clone() for name, m in models.items() for key, p in m.named_parameters()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[bool]:
    """Return which parameters are equal to the bit."""
    assert a.keys() == b.keys()
    return [torch.equal(a[key], b[key]) for key in a]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> FamilyTrainer:
    """A training from the first step to the last."""
    trained = trainer(tmp_path_factory.mktemp("uninterrupted"))
    train_family(trained, lambda line: None)
    return trained


@pytest.mark.parametrize("stops", [[1], [2], [3], [1, 4, 5]])
def test_a_resumed_training_ends_in_the_same_bits(tmp_path: Path, uninterrupted: FamilyTrainer, stops: list[int]) -> None:
    """Stopped before, when and after students join, even three times: the parameters are those of no stop at all."""
    for stop in stops:
        stopped = trainer(tmp_path)
        while stopped.step < stop:
            stopped.train_step()
        stopped.save()
        stopped.train_step()  # lost, as nothing is saved after it
    resumed = trainer(tmp_path)
    assert resumed.step == stops[-1]
    train_family(resumed, lambda line: None)
    assert resumed.step == 6
    assert all(same(parameters(resumed), parameters(uninterrupted)))


def test_a_finished_training_is_not_continued(uninterrupted: FamilyTrainer) -> None:
    """The last step is always saved, so a trainer for the same folder finds nothing left to do."""
    again = FamilyTrainer(uninterrupted.recipe, TOKENIZER, CORPUS)
    assert again.step == 6
    assert all(same(parameters(again), parameters(uninterrupted)))


def test_checkpoints_are_written_as_often_as_promised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every ``checkpoint_every`` steps and at the end; no half-written file is left beside."""
    trained, saved = FamilyTrainer(replace(recipe(tmp_path), checkpoint_every=4), TOKENIZER, CORPUS), list[int]()
    save = trained.save

    def counted() -> None:
        saved.append(trained.step)
        save()

    monkeypatch.setattr(trained, "save", counted)
    train_family(trained, lambda line: None)
    assert saved == [4, 6]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]


def test_models_learn_in_turn(tmp_path: Path) -> None:
    """First the target alone, then the wide student beside it, last the small one; whoever is not learning does not change."""
    trained = trainer(tmp_path)
    for learning in ({"target"}, {"target"}, {"target", "wide"}, {"target", "wide"}, {"small"}, {"small"}):
        before = parameters(trained)
        assert set(trained.train_step()) == learning
        moved = {key for key, equal in zip(before, same(before, parameters(trained)), strict=True) if not equal}
        assert moved == {key for name in learning for key in parameters(trained, name)}


def test_a_student_of_the_targets_width_begins_as_its_layers() -> None:
    """Of four layers the first and the last go into a student of two; embeddings and the last norm come along."""
    settings = recipe(Path("unused"))
    target, student = (build_model(replace(TARGET, layers=layers), settings, TOKENIZER) for layers in (4, 2))
    start_from_layers_of(target, student)
    given, taken = dict(target.named_parameters()), dict(student.named_parameters())
    for key, p in taken.items():
        assert torch.equal(p, given[key.replace("layers.1.", "layers.3.")]), key


@pytest.mark.parametrize("students", [{}, {"other": ModelSize(8, 2, 1, 16)}, {"wide": WIDE, "small": SMALL, "twin": TARGET}])
def test_the_target_does_not_depend_on_its_students(tmp_path: Path, uninterrupted: FamilyTrainer, students: dict[str, ModelSize]) -> None:
    """With no student, another one, or three in another order, the target ends in the same bits."""
    trained = trainer(tmp_path, students)
    train_family(trained, lambda line: None)
    assert all(same(parameters(trained, "target"), parameters(uninterrupted, "target")))


def test_another_seed_is_another_family(tmp_path: Path, uninterrupted: FamilyTrainer) -> None:
    """The seed of the recipe decides the initial weights."""
    first, second = (FamilyTrainer(replace(recipe(tmp_path), seed=seed), TOKENIZER, CORPUS) for seed in (5, 6))
    equal = dict(zip(parameters(first), same(parameters(first), parameters(second)), strict=True))
    assert not any(value for key, value in equal.items() if "norm" not in key and "bias" not in key)


def test_learning_rate_by_hand() -> None:
    """Of 100 steps 10 rise, the target is alone for 50 at the full rate; then 0.4 of it falls linearly over the other 50."""
    settings = Optimisation(steps=100, warmup_steps=10, alone_steps=50, joint_rate=0.4)
    target = {0: 1 / 10, 4: 5 / 10, 9: 1, 49: 1, 50: 0.4 * 50 / 50, 75: 0.4 * 25 / 50, 99: 0.4 * 1 / 50}
    assert {step: learning_rate_factor(step, 0, 100, settings) for step in target} == pytest.approx(target)
    student = {50: 1 / 10 * 0.4, 54: 5 / 10 * 0.4 * 46 / 50, 59: 0.4 * 41 / 50, 75: 0.4 * 25 / 50}
    assert {step: learning_rate_factor(step, 50, 100, settings) for step in student} == pytest.approx(student)
    last = {100: 1 / 10 * 0.4, 109: 0.4 * 31 / 40, 139: 0.4 * 1 / 40}
    assert {step: learning_rate_factor(step, 100, 140, settings) for step in last} == pytest.approx(last)


def two_models(equal: bool = False) -> nn.ModuleDict:
    """Return a target and a student, with equal weights or not."""
    settings = recipe(Path("unused"))
    torch.manual_seed(0)
    models = {name: build_model(TARGET if equal else size, settings, TOKENIZER) for name, size in (("target", TARGET), ("s", WIDE))}
    if equal:
        models["s"].load_state_dict(models["target"].state_dict())
    return nn.ModuleDict(models)


def logits64(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return float64 logits ``[rows * window, vocab]``."""
    with torch.no_grad():
        logits: Tensor = model(tokens[:, :-1]).logits.double()
    return logits.flatten(0, 1)


def test_losses_are_their_formulas() -> None:
    """Cross-entropy for the target; for a student 0.3 KL(p_target || q_student) + 0.7 cross-entropy on every second row."""
    models, tokens = two_models(), torch.from_numpy(CORPUS.batch(0, 3, 0.67))
    log_p, labels = logits64(models["target"], tokens).log_softmax(-1), tokens[:, 1:].flatten()
    cross_entropy = -log_p[range(len(labels)), labels].mean()
    rows = tokens[[0, 2]]
    log_p, log_q, labels = logits64(models["target"], rows).log_softmax(-1), logits64(models["s"], rows).log_softmax(-1), rows[:, 1:]
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    student = 0.3 * divergence - 0.7 * log_q[range(labels.numel()), labels.flatten()].mean()
    expected = torch.stack([cross_entropy, student]).float()
    torch.testing.assert_close(family_losses(models, tokens, 0.3, 2, True).detach(), expected, rtol=1e-5, atol=1e-6)


def test_a_student_that_equals_its_target_has_nothing_to_learn() -> None:
    """At weight one its loss is zero, and so is its gradient; a student that differs has both."""
    tokens = torch.from_numpy(CORPUS.batch(1, 3, 0.67))
    for equal in (True, False):
        models = two_models(equal)
        loss = family_losses(models, tokens, 1.0, 2, True)[1]
        loss.backward()
        slope = max(float(p.grad.abs().max()) for p in models["s"].parameters())  # type: ignore[union-attr]
        assert (abs(loss.item()) < 1e-6, slope < 1e-6) == (equal, equal)


def test_students_do_not_pull_at_the_target() -> None:
    """No gradient reaches the target through a student's loss."""
    models = two_models()
    family_losses(models, torch.from_numpy(CORPUS.batch(1, 3, 0.67)), 0.8, 2, True)[1].backward()
    assert not any(p.grad is not None and p.grad.any() for p in models["target"].parameters())
    assert all(p.grad is not None for p in models["s"].parameters())


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
