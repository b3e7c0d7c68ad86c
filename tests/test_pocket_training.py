"""Training of a family: exact to the bit, whoever stops it, and published as what it claims to be."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from dispatch_rl.errors import UserError
from dispatch_rl.pocket.checkpoint import Models
from dispatch_rl.pocket.corpus import Corpus, encode_documents
from dispatch_rl.pocket.publishing import publish
from dispatch_rl.pocket.recipe import ModelSize, Optimisation, Recipe
from dispatch_rl.pocket.training import (
    FamilyTrainer,
    build_model,
    denormals_as_zero,
    learning_rate_factor,
    start_from_layers_of,
    train_family,
)
from tests.families import tokenizer

TOKENIZER = tokenizer(300)
TARGET, SMALL, WIDE = ModelSize(16, 2, 2, 32), ModelSize(16, 1, 2, 32), ModelSize(24, 1, 3, 40)
FILES = encode_documents(TOKENIZER, [f"line {i} of a file that nobody would want to read\n" for i in range(40)])
CORPUS = Corpus(TOKENIZER, FILES, window=32, seed=5)


def recipe(output: Path, students: dict[str, ModelSize] | None = None) -> Recipe:
    """Return a recipe of six steps: two of the target alone, two with the wide student, two of it and of the small, grown one."""
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
        optimisation=Optimisation(steps=4, warmup_steps=2, alone_steps=2, last_steps=2, last_reasoning_share=0.34),
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
    """First the target alone, then the wide student beside it, last all students; whoever is not learning does not change."""
    trained = trainer(tmp_path)
    for learning in ({"target"}, {"target"}, {"target", "wide"}, {"target", "wide"}, {"small", "wide"}, {"small", "wide"}):
        before = parameters(trained)
        assert set(trained.train_step()) == learning
        moved = {key for key, equal in zip(before, same(before, parameters(trained)), strict=True) if not equal}
        assert moved == {key for name in learning for key in parameters(trained, name)}


def test_every_stage_has_its_own_share_of_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the windows while the target is alone, two of three while students learn beside it, one of three after it."""
    trained, shares = trainer(tmp_path), list[float]()
    batch = CORPUS.batch

    def told(step: int, rows: int, share: float) -> NDArray[np.int64]:
        shares.append(share)
        return batch(step, rows, share)

    monkeypatch.setattr(CORPUS, "batch", told)
    train_family(trained, lambda line: None)
    assert shares == [0.5] * 2 + [0.67] * 2 + [0.34] * 2


@pytest.mark.parametrize(("known", "narrow"), [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx512_f": True}, False)])
def test_a_cpu_that_does_not_multiply_bfloat16_learns_in_float32(
    known: dict[str, bool], narrow: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Emulated, it would be several times slower."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    trained, seen = trainer(tmp_path), list[bool]()
    trained.models["target"].register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    trained.train_step()
    assert seen == [narrow]


def test_denormals_are_zero_while_a_family_trains() -> None:
    """And not after it."""
    small = torch.tensor(1e-39)
    with denormals_as_zero():
        assert small * 0.5 == 0
    assert small * 0.5 > 0


def published(models: Models, folder: Path) -> Path:
    """Return the folder of a family as the recipe writes it, which leaves the models as they are."""
    publish(deepcopy(models), TOKENIZER, recipe(folder))
    return folder


def test_students_of_a_finished_family_go_on(tmp_path: Path, uninterrupted: FamilyTrainer) -> None:
    """Begun with a family, only the last steps are done: its students move, from where they were, and its target does not; resumed too."""
    models = deepcopy(uninterrupted.models)
    with torch.no_grad():
        for p in models["small"].parameters():
            p.add_(0.5)  # far from the target's layers, with which it once began
    family = published(models, tmp_path / "family")
    (tmp_path / "on").mkdir()
    settings = replace(uninterrupted.recipe, init=family, output=tmp_path / "on")
    trained = FamilyTrainer(settings, TOKENIZER, CORPUS)
    before = parameters(trained)
    assert trained.step == 4
    for name, model in models.items():
        assert all(torch.equal(before[f"{name}.{key}"], p.half().float()) for key, p in model.named_parameters()), name
    trained.train_step()
    equal = dict(zip(before, same(before, parameters(trained)), strict=True))
    assert {key.split(".")[0] for key, value in equal.items() if not value} == {"small", "wide"}
    assert all(value for key, value in equal.items() if key.startswith("target."))
    # One step moves a weight by the learning rate at most; starting from the target's layers would move it by far more.
    assert all(float((p - before[key]).abs().max()) < 0.01 for key, p in parameters(trained).items())
    trained.save()
    resumed = FamilyTrainer(settings, TOKENIZER, CORPUS)
    assert resumed.step == 5
    for each in (trained, resumed):
        train_family(each, lambda line: None)
    assert all(same(parameters(trained), parameters(resumed)))


@pytest.mark.parametrize(("init_step", "learning"), [(0, [{"target"}] * 2 + [{"target", "wide"}] * 2), (3, [{"target", "wide"}])])
def test_a_finished_family_learns_on_from_any_step(
    tmp_path: Path, uninterrupted: FamilyTrainer, init_step: int, learning: list[set[str]]
) -> None:
    """From the first step or later the target learns on too, from where it was, after it the students; the grown one is grown anew."""
    models = deepcopy(uninterrupted.models)
    with torch.no_grad():
        for p in models["small"].parameters():
            p.add_(0.5)  # far from the target's layers
    family = published(models, tmp_path / "family")
    settings = replace(uninterrupted.recipe, init=family, init_step=init_step, output=tmp_path)
    trained = FamilyTrainer(settings, TOKENIZER, CORPUS)
    assert trained.step == init_step
    before = parameters(trained)
    for names in [*learning, {"small", "wide"}, {"small", "wide"}]:
        assert set(trained.train_step()) == names
        if trained.step == init_step + 1:
            apart = max(float((p - before[key]).abs().max()) for key, p in parameters(trained).items())
            assert 0 < apart <= 0.5 * 1.05 * 0.008 * (1 if init_step == 0 else 0.3), "half of the rate, after one of two steps of its rise"
    assert trained.step == trained.total_steps
    target = parameters(trained, "target")
    for key, weight in parameters(trained, "small").items():
        assert float((weight - target[key.replace("small.", "target.")]).abs().max()) < 0.05, key


def test_a_family_to_begin_with_has_the_sizes_of_the_recipe(tmp_path: Path, uninterrupted: FamilyTrainer) -> None:
    """A model that is missing, or has another size, is named."""
    family = published(uninterrupted.models, tmp_path / "family")
    for students, said in (({"other": WIDE}, "no model .*other"), ({"small": replace(SMALL, layers=2)}, "small is .*layers=1.*layers=2")):
        with pytest.raises(UserError, match=f"^init: .*{said}"):
            FamilyTrainer(replace(uninterrupted.recipe, init=family, students=students), TOKENIZER, CORPUS)


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
