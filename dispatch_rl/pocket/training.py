"""Training of a family: the target learns from text, the students from text and from the target as it learns.

All models see the same batches, so the target's forward pass serves as teacher at no extra cost. A step is a pure function of the
parameters, the optimiser's state and the step number; a killed training therefore resumes exactly.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from dispatch_rl.pocket.corpus import Corpus
from dispatch_rl.pocket.recipe import ModelSize, Optimisation, Recipe

Models = dict[str, Qwen2ForCausalLM]


def build_model(size: ModelSize, recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """Return a freshly initialised model of ``size`` with tied embeddings."""
    config = Qwen2Config(
        vocab_size=recipe.vocab_size,
        hidden_size=size.hidden_size,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        intermediate_size=size.intermediate_size,
        max_position_embeddings=recipe.max_position_embeddings,
        initializer_range=recipe.optimisation.initializer_range,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2ForCausalLM(config)


def build_models(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Models:
    """Return the target and the students, initialised from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    sizes = {"target": recipe.target, **recipe.students}
    return {name: build_model(size, recipe, tokenizer) for name, size in sizes.items()}


def learning_rate_factor(step: int, joined: int, optimisation: Optimisation) -> float:
    """Return the share of the full learning rate at ``step`` for models that learn from step ``joined`` on.

    It rises to the full rate, stays while the target is alone, drops when the students join, and falls linearly to zero.
    """
    rise = min(1.0, (step - joined + 1) / max(1, optimisation.warmup_steps))
    if step < optimisation.alone_steps:
        return rise
    left = (optimisation.steps - step) / (optimisation.steps - optimisation.alone_steps)
    return rise * optimisation.joint_rate * left


def build_optimisers(models: Models, optimisation: Optimisation) -> list[torch.optim.Optimizer]:
    """Return Muon over the layers' matrices and AdamW over everything else."""
    named = [(f"{name}.{key}", p) for name, model in models.items() for key, p in model.named_parameters()]
    matrices = [p for key, p in named if p.ndim == 2 and "embed" not in key]
    vectors = [p for key, p in named if p.ndim != 2 or "embed" in key]
    muon = torch.optim.Muon(
        matrices,
        lr=optimisation.matrix_learning_rate,
        weight_decay=optimisation.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    adamw = torch.optim.AdamW(vectors, lr=optimisation.vector_learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    return [muon, adamw]


def family_losses(models: nn.ModuleDict, tokens: Tensor, distillation: float, student_stride: int) -> Tensor:
    """Return the loss of each model ``[models]`` on ``tokens [rows, window + 1]``, the target's first.

    A student minimises ``(1 - w) * cross-entropy + w * KL(p_target || q_student)`` on every ``student_stride``-th row; no
    gradient reaches the target through it.
    """
    logits = models["target"](tokens[:, :-1], use_cache=False).logits.float()
    losses = [F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())]
    log_p_target = logits.detach()[::student_stride].flatten(0, 1).log_softmax(-1)
    inputs, labels = tokens[::student_stride, :-1], tokens[::student_stride, 1:].flatten()
    for name, student in models.items():
        if name == "target":
            continue
        log_q = student(inputs, use_cache=False).logits.float().flatten(0, 1).log_softmax(-1)
        cross_entropy = F.nll_loss(log_q, labels)
        divergence = F.kl_div(log_q, log_p_target, reduction="batchmean", log_target=True)
        losses.append((1 - distillation) * cross_entropy + distillation * divergence)
    return torch.stack(losses)


class Checkpoint:
    """One safetensors file with all parameters and the optimisers' state; written atomically."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "checkpoint.safetensors"

    def save(self, step: int, models: Models, optimisers: list[torch.optim.Optimizer]) -> None:
        """Write the state reached after ``step`` steps."""
        tensors = {f"model.{key}": p.detach() for key, p in _named_parameters(models)}
        for i, optimiser in enumerate(optimisers):
            for j, state in optimiser.state_dict()["state"].items():
                tensors |= {f"optimiser.{i}.{j}.{key}": torch.as_tensor(value) for key, value in state.items()}
        temporary = self.path.with_suffix(".tmp")
        save_file({key: t.contiguous().clone() for key, t in tensors.items()}, temporary, {"step": str(step)})
        os.replace(temporary, self.path)

    def restore(self, models: Models, optimisers: list[torch.optim.Optimizer]) -> int:
        """Load the state, if there is one, and return the number of steps done."""
        if not self.path.exists():
            return 0
        with safe_open(self.path, "pt") as file:
            for key, p in _named_parameters(models):
                p.data.copy_(file.get_tensor(f"model.{key}"))
            states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimisers]
            for key in file.keys():  # noqa: SIM118  (a safetensors handle is no mapping)
                if key.startswith("optimiser."):
                    _, i, j, name = key.split(".", 3)
                    states[int(i)].setdefault(int(j), {})[name] = file.get_tensor(key)
            for optimiser, state in zip(optimisers, states, strict=True):
                optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
            return int(file.metadata()["step"])


def _named_parameters(models: Models) -> Iterator[tuple[str, nn.Parameter]]:
    for name, model in models.items():
        for key, p in model.named_parameters():
            yield f"{name}.{key}", p


class FamilyTrainer:
    """The state of a training: models, optimisers and the number of steps done."""

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerFast, corpus: Corpus) -> None:
        torch.set_num_threads(recipe.threads)
        self.recipe = recipe
        self.corpus = corpus
        self.device = _device(recipe.device)
        self.models = build_models(recipe, tokenizer)
        nn.ModuleDict(self.models).to(self.device)
        students = {name: model for name, model in self.models.items() if name != "target"}
        settings = recipe.optimisation
        self._target_optimisers = build_optimisers({"target": self.models["target"]}, settings)
        self._student_optimisers = build_optimisers(students, settings) if students else []
        self._full_rates = [optimiser.param_groups[0]["lr"] for optimiser in self._target_optimisers]
        self._losses_of = torch.compile(family_losses) if recipe.compile else family_losses
        self._checkpoint = Checkpoint(recipe.output)
        self.step = self._checkpoint.restore(self.models, self._optimisers)

    @property
    def _optimisers(self) -> list[torch.optim.Optimizer]:
        return self._target_optimisers + self._student_optimisers

    def train_step(self) -> dict[str, Tensor]:
        """Do one step and return the loss of every model that learned, still on the device."""
        settings = self.recipe.optimisation
        joined = self.step >= settings.alone_steps
        learning = self.models if joined else {"target": self.models["target"]}
        batch = self.corpus.batch(self.step, self.recipe.batch_rows, self.recipe.reasoning_share)
        with torch.autocast(self.device.type, torch.bfloat16):
            tokens = torch.from_numpy(batch).to(self.device)
            losses = self._losses_of(nn.ModuleDict(learning), tokens, settings.distillation, settings.student_stride)
        losses.sum().backward()
        self._update(self._target_optimisers, learning_rate_factor(self.step, 0, settings))
        if joined and self._student_optimisers:
            self._update(self._student_optimisers, learning_rate_factor(self.step, settings.alone_steps, settings))
        self.step += 1
        return dict(zip(learning, losses.detach(), strict=True))

    def save(self) -> None:
        """Write a checkpoint."""
        self._checkpoint.save(self.step, self.models, self._optimisers)

    def _update(self, optimisers: list[torch.optim.Optimizer], factor: float) -> None:
        for optimiser, rate in zip(optimisers, self._full_rates, strict=True):
            optimiser.param_groups[0]["lr"] = rate * factor
            optimiser.step()
            optimiser.zero_grad()


def train_family(trainer: FamilyTrainer, log: Callable[[str], None]) -> None:
    """Train to the end of the recipe, logging every ten steps and writing checkpoints."""
    recipe = trainer.recipe
    total, history = recipe.optimisation.steps, recipe.output / "losses.jsonl"
    began, first = time.monotonic(), trainer.step
    while trainer.step < total:
        losses = trainer.train_step()
        if trainer.step % 10 == 0:
            values = {name: round(float(loss), 4) for name, loss in losses.items()}
            with history.open("a") as file:
                file.write(json.dumps({"step": trainer.step, **values}) + "\n")
            rate = (trainer.step - first) * recipe.batch_rows * recipe.window / (time.monotonic() - began)
            log(f"step {trainer.step}/{total}  {'  '.join(f'{k} {v:.3f}' for k, v in values.items())}  {rate:.0f} tokens/s")
        if trainer.step % recipe.checkpoint_every == 0 or trainer.step == total:
            trainer.save()


def _device(name: str) -> torch.device:
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
