"""A language model with its cache: tokens in, logits out, roll back at will."""

from collections.abc import Sequence
from threading import RLock

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dispatch_rl.decoding.cache import AnyCache, RollbackCache
from dispatch_rl.decoding.fused import FusedForward, is_supported
from dispatch_rl.decoding.masks import for_transformers
from dispatch_rl.decoding.programs import Programs
from dispatch_rl.decoding.static import Choice
from dispatch_rl.kernels.verify import Rule


class CachedModel:
    """Runs a causal transformers model over one growing sequence.

    Args:
        model: The model.
        vocab: Its logits are cut to this, the family's common vocabulary.
        home: Device that tokens come from and logits go to; None means the model's own.
    """

    def __init__(self, model: PreTrainedModel, vocab: int, home: torch.device | None = None) -> None:
        self.model = model
        self.vocab = vocab
        self.device: torch.device = model.device
        self._home = model.device if home is None else home
        self._config = model.config.get_text_config()
        self.context_limit: int = self._config.max_position_embeddings
        self.fused = FusedForward(model) if is_supported(model) else None
        """Our own forward pass; None if the model runs through transformers."""
        self.cache = self.new_cache()
        self.lock = RLock()
        """Held while a family's models read; texts of several threads then take turns by round."""
        self.reader: object = None
        """Whoever began the sequence that the cache holds."""
        self.programs: Programs | None = None
        """Its captured passes, if there are any."""
        self.refused: set[Choice | Rule | None] = set()
        """How captured passes may not end, because that has failed; None stands for all of them."""

    @property
    def can_capture(self) -> bool:
        """Whether its passes may be captured."""
        return self.fused is not None and self._home == self.device and None not in self.refused

    @property
    def length(self) -> int:
        """Number of tokens that the cache holds."""
        return self.cache.length

    def new_cache(self) -> AnyCache:
        """Return an empty cache for this model."""
        return RollbackCache(self._config.num_hidden_layers) if self.fused is None else self.fused.new_cache()

    def start(self, capacity: int) -> None:
        """Begin a new sequence of at most ``capacity`` tokens."""
        if self.programs is not None and capacity > self.cache.capacity:
            renew, captured = self.programs.renew, self.programs.captured
            # The graphs go with the cache; so that few texts make it grow, it grows by much.
            self.programs = None
            self._reserve(max(capacity, 2 * self.cache.capacity))
            renew(captured)
        self._reserve(capacity)

    def _reserve(self, capacity: int) -> None:
        self.cache.reserve(capacity)
        if self.fused is not None:
            self.fused.reserve(self.cache.capacity)

    def roll_back(self, length: int) -> None:
        """Forget what was read beyond the first ``length`` tokens."""
        if length < self.cache.length:
            self.cache.length = length

    @torch.inference_mode()
    def adopt(self, source: int, place: int) -> None:
        """Keep the first ``place`` tokens, and behind them the one that was read at ``source``; forget the rest."""
        self.cache.move(source, place)
        self.cache.length = place + 1

    def forward(self, tokens: Tensor, rows: int | None = None, beside: Sequence[int] = ()) -> Tensor:
        """Read ``tokens`` behind what was read before.

        Args:
            tokens: Token ids ``[tokens]``.
            rows: Return the logits of the last ``rows`` positions only; None means all.
            beside: Of the last tokens, as many as this has numbers: in place of which of ``tokens`` each of them stands. It sees what that
                token sees, and itself; nobody sees it.

        Returns:
            Logits ``[rows, vocab]``.
        """
        if self.programs is not None and (logits := self.programs.forward(tokens, rows, beside)) is not None:
            return logits
        return self.eager(tokens, rows, beside)

    @torch.inference_mode()
    def eager(self, tokens: Tensor, rows: int | None = None, beside: Sequence[int] = ()) -> Tensor:
        """Do what :meth:`forward` does, operation by operation."""
        past, new = self.cache.length, len(tokens)
        tokens = tokens.to(self.device)
        if self.fused is not None and not beside:
            return self.fused(tokens, self.cache, self._mask(past, new, beside), rows)[:, : self.vocab].to(self._home)
        places = torch.arange(past + new, device=self.device)
        places[past + new - len(beside) :] = past + torch.tensor(beside, dtype=torch.long, device=self.device)
        if self.fused is not None:
            return self.fused(tokens, self.cache, self._mask(past, new, beside), rows, places[past:])[:, : self.vocab].to(self._home)
        # Only transformers knows how its attention is told who sees whom, and which layers see a window only.
        visible = self._mask(past, new, beside) if beside else None
        output = self.model(
            input_ids=tokens[None],
            position_ids=places[None, past:],
            attention_mask=None if visible is None else for_transformers(visible, places, self._config, self.model.dtype),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=rows or 0,
        )
        logits: Tensor = output.logits[0, :, : self.vocab].to(self._home)
        return logits

    @torch.inference_mode()
    def forward_batch(self, tokens: Tensor, visible: Tensor, cache: AnyCache | None, rows: int) -> Tensor:
        """Read many texts at once, apart from the sequence that this model holds.

        Args:
            tokens: Token ids ``[texts, tokens]``.
            visible: Which tokens are real, those in ``cache`` included: 1 or 0 ``[texts, cached + tokens]``.
            cache: What was read of the texts before; None if nothing was and nothing is to be kept.
            rows: Return the logits of the last ``rows`` tokens.

        Returns:
            Logits ``[texts, rows, vocab]``.
        """
        tokens, visible = tokens.to(self.device), visible.to(self.device)
        new, past = tokens.shape[1], 0 if cache is None else cache.length
        # What stands behind the end of the context is read by nobody; it only must not be out of reach.
        positions = (visible.cumsum(-1)[:, -new:] - 1).clamp(min=0, max=self.context_limit - 1)
        if self.fused is not None:
            self.fused.reserve(self.context_limit)
            seen = torch.ones((new, past + new), dtype=torch.bool, device=self.device).tril_(past)
            # A filling token sees itself, since attention to nothing is not a number.
            mask = (visible.bool()[:, None] & seen) | (seen & ~seen.tril(past - 1))
            return self.fused.batch(tokens, positions, cache, mask[:, None], rows)[:, :, : self.vocab].to(self._home)
        output = self.model(
            input_ids=tokens,
            attention_mask=visible,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=rows,
        )
        logits: Tensor = output.logits[:, :, : self.vocab].to(self._home)
        return logits

    def _mask(self, past: int, new: int, beside: Sequence[int]) -> Tensor | None:
        """Return which positions each new token sees ``[1, 1, new, past + new]``; None where attention needs no mask."""
        if (past == 0 and not beside) or new == 1:
            return None
        visible = torch.ones((new, past + new), dtype=torch.bool, device=self.device).tril_(past)
        for row, place in enumerate(beside, new - len(beside)):
            visible[row, past + place : past + row] = False
        return visible[None, None]
