"""Writing a trained family as Hugging Face folders."""

import platform

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
    before = _first_steps(recipe) if recipe.init is None else (recipe.init / "TRAINING.md").read_text().strip()
    return f"{before} {_last_steps(recipe)}\n"


def _first_steps(recipe: Recipe) -> str:
    settings = recipe.optimisation
    stride_rows = len(range(0, recipe.batch_rows, settings.student_stride))
    beside_tokens = (settings.steps - settings.alone_steps) * stride_rows * recipe.window
    sizes = ", ".join(
        f"{name} {size.layers} layers of {size.hidden_size}" for name, size in {**recipe.students, "target": recipe.target}.items()
    )
    return (
        f"Sizes: {sizes}; vocabulary of {recipe.vocab_size} byte-level BPE tokens, digits single. Muon for matrices, AdamW for the rest. "
        f"Weights in {recipe.dtype}. Windows of {recipe.window} tokens, {recipe.batch_rows} a step, {recipe.reasoning_share:.0%} "
        f"reasoning, the library of Python {platform.python_version()} for the rest. The target learned for {settings.steps} steps "
        f"({_millions(recipe, settings.steps)}), alone for the first {settings.alone_steps}; from then on the students that are not of its "
        f"width learned beside it ({beside_tokens / 1e6:.1f} M tokens), distilled from it (weight {settings.distillation} of "
        f"KL(p_target || q_student), the rest cross-entropy)."
    )


def _last_steps(recipe: Recipe) -> str:
    settings = recipe.optimisation
    grown = [] if recipe.init else recipe.grown
    began = f" {' and '.join(grown)} began as a selection of its layers." if grown else ""
    temperatures = " and ".join(f"{temperature:g}" for temperature in settings.last_temperatures)
    return (
        f"{'Then' if recipe.init else 'After that'} all students were distilled from the finished target for {settings.last_steps} steps "
        f"({_millions(recipe, settings.last_steps)}, {settings.last_reasoning_share:.0%} reasoning), by the divergence at temperatures "
        f"{temperatures} alone.{began}"
    )


def _millions(recipe: Recipe, steps: int) -> str:
    return f"{steps * recipe.batch_rows * recipe.window / 1e6:.1f} M tokens"
