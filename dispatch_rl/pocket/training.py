"""Training of a family: the target learns from text, the students from text and from the target as it learns.

First the target learns alone; then narrower students learn beside it from the same batches, so that its forward pass serves as teacher
at no extra cost; last, when the target is finished, students of its own width begin as a selection of its layers and all are distilled.
A step is a pure function of the parameters, the optimisers' state and the step number; a killed training therefore resumes exactly.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from dispatch_rl.errors import UserError
from dispatch_rl.pocket.checkpoint import Checkpoint, Models
from dispatch_rl.pocket.corpus import Corpus
from dispatch_rl.pocket.losses import Divergence, divergence, joint_losses, last_losses
from dispatch_rl.pocket.recipe import ModelSize, Optimisation, Recipe


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


def load_models(recipe: Recipe, folder: Path) -> Models:
    """Return the target and the students of a finished family.

    Raises:
        UserError: One of them is not there, or has another size than in the recipe.
    """
    models = {}
    for name, size in {"target": recipe.target, **recipe.students}.items():
        if not (folder / name / "config.json").is_file():
            raise UserError(f"init: there is no model {folder / name}")
        models[name] = model = Qwen2ForCausalLM.from_pretrained(folder / name, dtype=torch.float32)
        shape = model.config
        found = ModelSize(shape.hidden_size, shape.num_hidden_layers, shape.num_attention_heads, shape.intermediate_size)
        if found != size:
            raise UserError(f"init: {folder / name} is {found}; the recipe has {size}")
    return models


def learning_rate_factor(step: int, first: int, end: int, optimisation: Optimisation) -> float:
    """Return the share of the full learning rate at ``step`` for models that learn from step ``first`` until ``end``.

    It rises to the full rate, stays while the target is alone, drops when the students join, and falls linearly to zero.
    """
    rise = min(1.0, (step - first + 1) / max(1, optimisation.warmup_steps))
    if step < optimisation.alone_steps:
        return rise
    left = (end - step) / (end - max(first, optimisation.alone_steps))
    return rise * optimisation.joint_rate * left


@torch.no_grad()
def start_from_layers_of(target: Qwen2ForCausalLM, student: Qwen2ForCausalLM) -> None:
    """Copy the target's embeddings and as many of its layers as ``student`` has, evenly spaced, the first and the last among them."""
    count, available = student.config.num_hidden_layers, target.config.num_hidden_layers
    chosen = [round(i * (available - 1) / max(1, count - 1)) for i in range(count)]
    student.get_input_embeddings().load_state_dict(target.get_input_embeddings().state_dict())
    student.model.norm.load_state_dict(target.model.norm.state_dict())
    for layer, index in zip(student.model.layers, chosen, strict=True):
        layer.load_state_dict(target.model.layers[index].state_dict())


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


@dataclass(frozen=True)
class Group:
    """Models that learn together, from step ``first`` until before step ``end``."""

    models: Models
    first: int
    end: int
    optimisers: list[torch.optim.Optimizer]


class FamilyTrainer:
    """The state of a training: models, optimisers and the number of steps done."""

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerFast, corpus: Corpus) -> None:
        torch.set_num_threads(recipe.threads)
        self.recipe = recipe
        self.corpus = corpus
        self.device = _device(recipe.device)
        self.models = build_models(recipe, tokenizer) if recipe.init is None else load_models(recipe, recipe.init)
        nn.ModuleDict(self.models).to(self.device)
        self._groups = self._build_groups()
        self._divergence = _compile(self.models, divergence) if recipe.compile else divergence
        self._checkpoint = Checkpoint(recipe.output)
        self.step = self._checkpoint.restore(self.models, self._optimisers) or recipe.first_step

    @property
    def total_steps(self) -> int:
        """Steps until every model is finished."""
        return max((group.end for group in self._groups), default=self.recipe.first_step)

    def train_step(self) -> dict[str, Tensor]:
        """Do one step and return the loss of every model that learned, still on the device."""
        settings = self.recipe.optimisation
        learning = [group for group in self._groups if group.first <= self.step < group.end]
        if self.step == settings.steps and self.recipe.first_step < self.step:
            for name in self.recipe.grown:
                start_from_layers_of(self.models["target"], self.models[name])
        names = [name for group in learning for name in group.models]
        losses = self._losses(names)
        losses.sum().backward()
        for group in learning:
            self._update(group)
        self.step += 1
        return dict(zip(names, losses.detach(), strict=True))

    def _losses(self, names: Sequence[str]) -> Tensor:
        """Return the losses of the models that learn in this step."""
        settings, recipe = self.recipe.optimisation, self.recipe
        tokens = torch.from_numpy(self.corpus.batch(self.step, recipe.batch_rows, recipe.reasoning_share_at(self.step)))
        if self.device.type == "cuda":  # from pinned memory, lest the copy wait for the step before: this one's text is made meanwhile
            tokens = tokens.pin_memory().to(self.device, non_blocking=True)
        models = nn.ModuleDict({name: self.models[name] for name in dict.fromkeys(["target", *names])})
        with torch.autocast(self.device.type, torch.bfloat16, enabled=_multiplies_bfloat16(self.device)):
            if self.step >= settings.steps:
                return last_losses(models, tokens, settings.last_temperatures, self._divergence)
            return joint_losses(models, tokens, settings.distillation, settings.student_stride, self._divergence)

    def save(self) -> None:
        """Write a checkpoint."""
        self._checkpoint.save(self.step, self.models, self._optimisers)

    @property
    def _optimisers(self) -> list[torch.optim.Optimizer]:
        return [optimiser for group in self._groups for optimiser in group.optimisers]

    def _build_groups(self) -> list[Group]:
        """Return the target, the students that learn beside it, and all students once it is finished; those that have steps left."""
        settings, students, begin = self.recipe.optimisation, self.recipe.students, self.recipe.first_step
        beside = [name for name in students if name not in self.recipe.grown]
        spans = [
            (["target"], 0, settings.steps),
            (beside, settings.alone_steps, settings.steps),
            (list(students), settings.steps, settings.steps + settings.last_steps),
        ]
        groups = []
        for names, first, end in spans:
            if names and end > begin:
                models = {name: self.models[name] for name in names}
                groups.append(Group(models, max(first, begin), end, build_optimisers(models, settings)))
        return groups

    def _update(self, group: Group) -> None:
        settings = self.recipe.optimisation
        factor = learning_rate_factor(self.step, group.first, group.end, settings)
        for optimiser, rate in zip(group.optimisers, (settings.matrix_learning_rate, settings.vector_learning_rate), strict=True):
            optimiser.param_groups[0]["lr"] = rate * factor
            optimiser.step()
            optimiser.zero_grad()


def train_family(trainer: FamilyTrainer, log: Callable[[str], None]) -> None:
    """Train to the end of the recipe, logging every ten steps and writing checkpoints."""
    recipe = trainer.recipe
    total, history = trainer.total_steps, recipe.output / "losses.jsonl"
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


@contextmanager
def denormals_as_zero() -> Iterator[None]:
    """Take numbers too small for full precision as zero: the gradients of attention are full of them, and some CPUs crawl over each.

    Threads inherit this when they are started, so it comes before the first parallel work.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def _compile(models: Models, divergence: Divergence) -> Divergence:
    """Compile the layers of ``models``, once for all layers of one width, and return ``divergence`` compiled."""
    # A width is compiled anew without gradients, and where students learn from other numbers of rows.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 4 * len(models))
    for model in models.values():
        for layer in model.model.layers:
            layer.compile()
    compiled: Divergence = torch.compile(divergence)
    return compiled


def _multiplies_bfloat16(device: torch.device) -> bool:
    """Return whether the hardware multiplies bfloat16; a CPU that emulates it is several times slower than in float32."""
    if device.type != "cpu":
        return True
    known: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.9 has no such list
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def _device(name: str) -> torch.device:
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
