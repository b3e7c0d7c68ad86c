"""Writing a trained family as Hugging Face folders."""

import platform
from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from dispatch_rl.pocket.recipe import Recipe


def publish(models: dict[str, Qwen2ForCausalLM], tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> None:
    """Write each model with its tokenizer to ``output/NAME`` in the recipe's 16-bit type, and how they were trained beside them."""
    for name, model in models.items():
        halved = nn.Module.to(model, dtype=getattr(torch, recipe.dtype))
        halved.save_pretrained(recipe.output / name)
        tokenizer.save_pretrained(recipe.output / name)
    (recipe.output / "TRAINING.md").write_text(training_text(recipe))


def training_text(recipe: Recipe) -> str:
    """Return a paragraph on sizes, data and tokens seen."""
    parts = [_sizes(recipe) if recipe.init is None else (recipe.init / "TRAINING.md").read_text().strip()]
    if recipe.first_step < recipe.optimisation.steps:
        parts.append(_first_steps(recipe))
    return " ".join([*parts, _last_steps(recipe)]) + "\n"


def _sizes(recipe: Recipe) -> str:
    sizes = ", ".join(
        f"{name} {size.layers} layers of {size.hidden_size}" for name, size in {**recipe.students, "target": recipe.target}.items()
    )
    return (
        f"Sizes: {sizes}; vocabulary of {recipe.vocab_size} byte-level BPE tokens, digits single. Muon for matrices, AdamW for the rest. "
        f"Weights in {recipe.dtype}. Windows of {recipe.window} tokens, {recipe.batch_rows} a step, of problems and of the library of "
        f"Python {platform.python_version()}."
    )


def _first_steps(recipe: Recipe) -> str:
    settings = recipe.optimisation
    steps, alone = settings.steps - recipe.first_step, max(0, settings.alone_steps - recipe.first_step)
    stride_rows = len(range(0, recipe.batch_rows, settings.student_stride))
    beside_tokens = (steps - alone) * stride_rows * recipe.window
    share = f"{recipe.reasoning_share:.0%}"
    alone_first = f"alone for the first {alone} ({settings.alone_reasoning_share:.0%} reasoning, then {share}); from then on"
    return (
        f"{'Then the target learned on' if recipe.init else 'The target learned'} for {steps} steps ({_millions(recipe, steps)}), "
        f"{alone_first if alone else f'{share} reasoning;'} the students that are not of its width learned beside it "
        f"({beside_tokens / 1e6:.1f} M tokens), distilled from it (weight {settings.distillation} of KL(p_target || q_student), the rest "
        f"cross-entropy)."
    )


def _last_steps(recipe: Recipe) -> str:
    settings = recipe.optimisation
    grown = recipe.grown if recipe.first_step < settings.steps else []
    began = f" {_listed(grown)} began as a selection of its layers." if grown else ""
    when = "Then" if recipe.first_step == settings.steps else "After that"
    temperatures = _listed([f"{temperature:g}" for temperature in settings.last_temperatures])
    were = "was" if len(recipe.students) == 1 else "were"
    return (
        f"{when} {_listed(list(recipe.students))} {were} distilled from the finished target for {settings.last_steps} steps "
        f"({_millions(recipe, settings.last_steps)}, {settings.last_reasoning_share:.0%} reasoning), by the divergence at temperatures "
        f"{temperatures} alone.{began}"
    )


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def _millions(recipe: Recipe, steps: int) -> str:
    return f"{steps * recipe.batch_rows * recipe.window / 1e6:.1f} M tokens"
