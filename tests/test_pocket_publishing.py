"""``python -m dispatch_rl.pocket`` from text to a family that loads, and the figures on its card."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import PreTrainedTokenizerFast

from dispatch_rl.config import FamilyConfig, ModelSource
from dispatch_rl.decoding.arms import NONE, Arm
from dispatch_rl.decoding.families import Family, load_family
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.decoding.session import DecodingSession
from dispatch_rl.decoding.vocabulary import PROBE
from dispatch_rl.errors import UserError
from dispatch_rl.pocket import card, measures, stdlib
from dispatch_rl.pocket.__main__ import main
from dispatch_rl.pocket.measures import ModelFigures
from dispatch_rl.pocket.publishing import training_text
from dispatch_rl.pocket.reasoning import KINDS, Problem, is_held_out
from dispatch_rl.pocket.recipe import ModelSize, Recipe
from tests.families import family_config

RECIPE = """\
vocab_size: 300
window: 32
batch_rows: 3
reasoning_share: 0.67
target: {hidden_size: 16, layers: 2, heads: 2, intermediate_size: 32}
students:
  tiny: {hidden_size: 8, layers: 1, heads: 2, intermediate_size: 16}
  grown: {hidden_size: 16, layers: 1, heads: 2, intermediate_size: 32}
optimisation: {steps: 4, warmup_steps: 2, alone_steps: 2, last_steps: 2}
dtype: bfloat16
device: cpu
compile: false
threads: 1
"""


def few_problems(family: Family, problems_per_kind: int) -> measures.FamilyFigures:
    """Measure with one problem per kind and two paths."""
    assert problems_per_kind == 20
    return measure(family, 1, paths=2)


measure = measures.measure


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    """Train on six modules, hold two out, and write and measure little."""
    training, held_out = list(stdlib.training_files())[:6], list(stdlib.held_out_files())[:2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stdlib, "training_files", lambda: iter(training))
        patch.setattr(stdlib, "held_out_files", lambda: iter(held_out))
        patch.setattr(measures, "_NEW_TOKENS", 12)
        patch.setattr(measures, "_PATH_TOKENS", {"reasoning": 12, "code": 12})
        patch.setattr(measures, "measure", few_problems)
        yield


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the arguments of a small training with one folder of text."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "text").mkdir()
    (folder / "text" / "notes.md").write_text("Not a word of this is in the library.\n" * 30)
    (folder / "recipe.yaml").write_text(RECIPE)
    return [f"--config={folder}/recipe.yaml", f"--output={folder}/family", f"--folders=[{folder}/text]"]


@pytest.fixture(scope="module")
def made(arguments: list[str]) -> Path:
    """Return the folder of a family that the command made."""
    main(arguments)
    return Path(arguments[1].removeprefix("--output="))


@pytest.fixture
def family(made: Path) -> Family:
    """That family, loaded."""
    return load_family(replace(family_config(made, students=("tiny", "grown")), threads=1))


@pytest.fixture
def twins(made: Path) -> Family:
    """A family whose student equals its target; both are made surer, so that their text depends on more than the noise."""
    twins = load_family(FamilyConfig(ModelSource(f"{made}/target"), {"twin": ModelSource(f"{made}/target")}, threads=1))
    for model in twins.models():
        model.model.get_parameter("model.norm.weight").mul_(5)
    return twins


def test_the_command_makes_a_family_that_loads(family: Family) -> None:
    """Target and students have the recipe's shapes and vocabulary, and decode."""
    shapes = [(m.model.config.hidden_size, m.model.config.num_hidden_layers) for m in family.models()]
    assert shapes == [(16, 2), (8, 1), (16, 1)]
    assert (family.vocab, family.context_limit) == (300, 1024)
    assert family.eos_token_ids == {family.tokenizer.eos_token_id}
    session = DecodingSession(family, family.encode("Problem: "), Sampling(), 5)
    session.step(Arm("tiny", 2))
    assert session.text_tokens


@pytest.mark.parametrize("name", ["target", "tiny", "grown"])
def test_weights_are_published_in_16_bit(made: Path, name: str) -> None:
    """Every tensor has the recipe's type and the value that the last checkpoint rounds to."""
    with safe_open(made / name / "model.safetensors", "pt") as file, safe_open(made / "checkpoint.safetensors", "pt") as exact:
        assert "model.embed_tokens.weight" in file.keys()  # noqa: SIM118  (a safetensors handle is no mapping)
        for key in file.keys():  # noqa: SIM118
            assert torch.equal(file.get_tensor(key), exact.get_tensor(f"model.{name}.{key}").bfloat16()), key


@pytest.mark.parametrize("name", ["target", "tiny", "grown"])
def test_every_folder_has_the_tokenizer(made: Path, family: Family, name: str) -> None:
    """A model's own folder is all that its user needs; what is loaded from it splits text as in training."""
    trained = PreTrainedTokenizerFast(tokenizer_file=str(made / "target" / "tokenizer.json"))
    ours = load_family(FamilyConfig(ModelSource(f"{made}/{name}"), {}, threads=1))
    for text in (PROBE, "Problem: Compute 48 + 29.\n<think>\n", "    it's \r\n\n\n 1234"):
        assert ours.encode(text) == family.encode(text) == trained(text)["input_ids"]


def test_a_second_call_does_nothing_over_again(made: Path, arguments: list[str]) -> None:
    """A finished training is published anew from its checkpoint: the same weights to the byte."""
    files = [made / name / "model.safetensors" for name in ("target", "tiny", "grown")]
    before = [path.read_bytes() for path in files]
    checkpoint = (made / "checkpoint.safetensors").stat().st_mtime_ns
    main(arguments)
    assert [path.read_bytes() for path in files] == before
    assert (made / "checkpoint.safetensors").stat().st_mtime_ns == checkpoint


@pytest.mark.parametrize("change", ["--seed=1", "--optimisation.steps=5", "--students.tiny.layers=2"])
def test_another_recipe_is_not_mixed_in(made: Path, arguments: list[str], change: str) -> None:
    """A folder that holds a training is continued by the same recipe or not at all."""
    before = (made / "recipe.yaml").read_text()
    with pytest.raises(UserError, match=r"^output: .* holds a training with another recipe; choose another folder or remove it$"):
        main([*arguments, change])
    assert (made / "recipe.yaml").read_text() == before


def test_what_was_done_to_a_family_is_told_in_order(made: Path, arguments: list[str], tmp_path: Path) -> None:
    """A family that went on, first with its target and then with students alone, tells all three trainings with their steps."""
    begun = (made / "TRAINING.md").read_text().strip()
    assert "The target learned for 4 steps" in begun
    assert begun.endswith("grown began as a selection of its layers.")
    further = [*arguments, f"--output={tmp_path}/on", f"--init={made}", "--init_step=1", "--reasoning_share=0.34"]
    main(further)
    on = (tmp_path / "on" / "TRAINING.md").read_text().strip()
    assert on.startswith(begun + " Then the target learned on for 3 steps (0.0 M tokens), alone for the first 1 (50% reasoning, then 34%);")
    assert "for 2 steps" in on.removeprefix(begun)
    main([*arguments, f"--output={tmp_path}/students", f"--init={tmp_path}/on"])
    last = (tmp_path / "students" / "TRAINING.md").read_text().removeprefix(on)
    assert last.startswith(" Then tiny and grown were distilled from the finished target for 2 steps")


def test_a_training_says_who_learned(made: Path) -> None:
    """A training that begins after its target's first steps alone, or distils one student, does not tell of more."""
    recipe = Recipe(init=made, init_step=4000, students={"large": ModelSize(160, 6, 5, 432)})
    text = training_text(recipe).removeprefix((made / "TRAINING.md").read_text().strip())
    assert "for 4000 steps (12.3 M tokens), 84% reasoning; the students" in text
    assert "After that large was distilled from the finished target for 2500 steps" in text
    assert "After that small, medium and large were distilled" in training_text(Recipe())


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--init_step=0"], "init_step: needs init"), (["--init_step=5"], "init_step: 5 is not between 0 and optimisation.steps, 4")],
)
def test_a_step_to_begin_with_belongs_to_a_family(made: Path, arguments: list[str], tmp_path: Path, options: list[str], said: str) -> None:
    """Without a family, or after its target is finished, one line says so, before anything is written."""
    family = [f"--init={made}"] if said.startswith("init_step: 5") else []
    with pytest.raises(UserError, match=f"^{said}"):
        main([*arguments, f"--output={tmp_path}/family", *family, *options])
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    """One line names the folder of text that is not there, before anything is written."""
    with pytest.raises(UserError, match=f"^folders: there is no folder {tmp_path}/absent$"):
        main([f"--output={tmp_path}/family", f"--folders=[{tmp_path},{tmp_path}/absent]"])
    assert list(tmp_path.iterdir()) == []


def test_the_card_shows_every_model_and_kind(made: Path) -> None:
    """The card has a row for each model, from small to large, one for each kind of problem, and the paragraph on the training."""
    text = (made / "README.md").read_text()
    table = [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if line.startswith("| ")]
    assert table == ["model", "tiny", "grown", "target", "kind", *KINDS]
    assert (made / "TRAINING.md").read_text().strip() in text


def test_a_folder_without_a_training_has_no_card(other_folder: Path) -> None:
    """A card needs the paragraph on the training, and says so in one line."""
    with pytest.raises(UserError, match=r"^folder: .* has no TRAINING.md"):
        card.training_text(other_folder)


@pytest.mark.parametrize("kind", ["reasoning", "code"])
def test_a_student_that_equals_its_target_misses_nothing(twins: Family, family: Family, kind: str) -> None:
    """Of the target's own tokens the twin misses none, and one a path if its last token is altered; a real student misses some."""
    paths, entropies = measures.target_paths(twins, kind, 5)
    tokens = sum(len(path) for _, path in paths)
    assert len(entropies) == tokens - 5  # the first token of a path is the prefill's
    assert measures.missed_share(twins.target, paths) == measures.missed_share(twins.students["twin"], paths) == 0
    altered = [(prompt, [*path[:-1], (path[-1] + 1) % 300]) for prompt, path in paths]
    assert measures.missed_share(twins.students["twin"], altered) == 5 / tokens
    assert 0 < measures.missed_share(family.students["tiny"], paths) < 1


@pytest.mark.parametrize("kind", ["reasoning", "code"])
def test_paths_are_the_targets_own(twins: Family, kind: str) -> None:
    """Each path is what the target writes alone at temperature 0.6 with its number as seed."""
    for seed, (prompt, path) in enumerate(measures.target_paths(twins, kind, 3)[0]):
        session = DecodingSession(twins, prompt, Sampling(0.6, seed=seed), 12)
        while not session.finished:
            session.step(Arm("twin", 3))
        assert session.text_tokens == path


def test_the_exam_is_held_out_and_even() -> None:
    """Every kind has its number of problems, all of them held out; the exam is the same each time, a longer one begins with it."""
    exam = measures.held_out_exam(3)
    assert [problem.kind for problem in exam] == [kind for kind in KINDS for _ in range(3)]
    assert all(is_held_out(problem) for problem in exam)
    assert measures.held_out_exam(3) == exam
    assert measures.held_out_exam(1)[0] == exam[0]


def test_solved_shares_by_hand(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers count if they are exact, by kind, whatever batches they come in: 2 of 3, 0 of 3, 1 of 1."""
    exam = [Problem("a", 1, f"{i}?", (), str(i)) for i in range(3)]
    exam += [Problem("b", 1, f"{i}?", (), str(i)) for i in range(3, 6)] + [Problem("c", 1, "6?", (), "6")]
    wrong = {"2": "Answer: 22", "3": "3", "4": "Answer: 4.0", "5": "Answer: 6\nAnswer: 5"}

    def answers(model: object, family: Family, batch: list[Problem]) -> list[str]:
        assert len(batch) <= 2
        return [wrong.get(problem.answer, problem.solution) for problem in batch]

    monkeypatch.setattr(measures, "_BATCH", 2)
    monkeypatch.setattr(measures, "_greedy_texts", answers)
    shares = measures.solved_shares(family.target, family, exam)
    assert shares == {"a": 2 / 3, "b": 0, "c": 1}
    assert ModelFigures(1, 1.0, 1.0, shares, 1.0, {}).solved_share == pytest.approx((2 / 3 + 0 + 1) / 3)


def test_answers_in_a_batch_are_those_alone(pocket: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of unequal length, padded side by side, are answered greedily as each is by itself."""
    monkeypatch.setattr(measures, "_NEW_TOKENS", 20)
    exam = measures.held_out_exam(1)[:4]
    texts = measures._greedy_texts(pocket.target, pocket, exam)
    for problem, text in zip(exam, texts, strict=True):
        session = DecodingSession(pocket, pocket.encode(problem.prompt), Sampling(), 20)
        while not session.finished:
            session.step(Arm(NONE))
        ended = session.finish_reason == "stop"
        assert pocket.decode(session.text_tokens[:-1] if ended else session.text_tokens) == text


def test_losses_are_those_of_even_odds(family: Family) -> None:
    """A model that finds all tokens alike loses log(300) nats on each, reasoning or code."""
    with torch.no_grad():
        for p in family.target.model.parameters():
            p.zero_()
    even = torch.tensor(300.0).log().item()
    assert measures.reasoning_loss(family.target, family, measures.held_out_exam(1)) == pytest.approx(even, rel=1e-5)
    assert measures.code_loss(family.target, family) == pytest.approx(even, rel=1e-5)


def test_costs_are_shares_of_the_target(family: Family) -> None:
    """The target costs one, and a student of one layer instead of two less."""
    costs = measures.relative_costs({"target": family.target, **family.students}, rounds=30, context=20)
    assert costs.keys() == {"target", "tiny", "grown"}
    assert costs["target"] == 1
    assert 0 < costs["tiny"] < 1


def test_losses_are_logged(tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every ten steps a line of ``losses.jsonl`` tells the loss of each model that learned."""
    monkeypatch.setattr(card, "main", lambda argv: None)
    lengths = ["--optimisation.alone_steps=5", "--optimisation.steps=15", "--optimisation.last_steps=5"]
    main([arguments[0], f"--output={tmp_path}/family", *lengths])
    lines = [json.loads(line) for line in (tmp_path / "family" / "losses.jsonl").read_text().splitlines()]
    assert [(line["step"], set(line) - {"step"}) for line in lines] == [(10, {"target", "tiny"}), (20, {"tiny", "grown"})]
