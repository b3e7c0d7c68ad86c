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
    """Return a sentence or two on sizes, data and tokens seen."""
    steps, rows = recipe.optimisation.steps, recipe.batch_rows
    target_tokens = steps * rows * recipe.window
    student_rows = len(range(0, rows, recipe.optimisation.student_stride))
    sizes = ", ".join(
        f"{name} {size.layers} layers of {size.hidden_size}" for name, size in {**recipe.students, "target": recipe.target}.items()
    )
    return (
        f"All models side by side for {steps} steps of {rows} windows of {recipe.window} tokens, {recipe.reasoning_share:.0%} reasoning, "
        f"Python {platform.python_version()}'s library for the rest. The target saw {target_tokens / 1e6:.1f} M tokens; the students, "
        f"{target_tokens * student_rows / rows / 1e6:.1f} M, distilled from the target as it learned "
        f"(weight {recipe.optimisation.distillation} of KL(p_target || q_student), the rest cross-entropy). Sizes: {sizes}; "
        f"vocabulary of {recipe.vocab_size} byte-level BPE tokens, digits single. Muon for matrices, AdamW for the rest. "
        f"Weights in {recipe.dtype}.\n"
    )
