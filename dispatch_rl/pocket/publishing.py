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
    settings = recipe.optimisation
    step_tokens = recipe.batch_rows * recipe.window
    stride_rows = len(range(0, recipe.batch_rows, settings.student_stride))
    beside_tokens = (settings.steps - settings.alone_steps) * stride_rows * recipe.window
    grown = [name for name, size in recipe.students.items() if recipe.is_grown(size)]
    sizes = ", ".join(
        f"{name} {size.layers} layers of {size.hidden_size}" for name, size in {**recipe.students, "target": recipe.target}.items()
    )
    last = f"After that {' and '.join(grown)} began as a selection of its layers and was distilled for {settings.last_steps} steps "
    return (
        f"Windows of {recipe.window} tokens, {recipe.batch_rows} a step, {recipe.reasoning_share:.0%} reasoning, the library of Python "
        f"{platform.python_version()} for the rest. The target learned for {settings.steps} steps "
        f"({settings.steps * step_tokens / 1e6:.1f} M tokens), alone for the first {settings.alone_steps}; from then on the other students "
        f"learned beside it ({beside_tokens / 1e6:.1f} M tokens), distilled from it "
        f"(weight {settings.distillation} of KL(p_target || q_student), the rest cross-entropy). "
        + (f"{last}({settings.last_steps * step_tokens / 1e6:.1f} M tokens). " if grown else "")
        + f"Sizes: {sizes}; vocabulary of {recipe.vocab_size} byte-level BPE tokens, digits single. Muon for matrices, AdamW for the rest. "
        f"Weights in {recipe.dtype}.\n"
    )
