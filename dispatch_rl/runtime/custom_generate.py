"""Dispatched decoding in transformers' ``generate``: ``target.generate(**inputs, custom_generate=dispatched("bundle"))``."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from types import FrameType
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateDecoderOnlyOutput, GenerationMixin

from dispatch_rl.decoding.families import Family, load_family
from dispatch_rl.decoding.graphs import capture_graphs
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.errors import UserError
from dispatch_rl.runtime.bundle import Bundle
from dispatch_rl.runtime.writer import Generated, Writer

_NEUTRAL: Mapping[str, Any] = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "guidance_scale": 1.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "renormalize_logits": False,
    "remove_invalid_values": False,
    "token_healing": False,
    "use_mtp": False,
    "output_scores": False,
    "output_logits": False,
    "output_attentions": False,
    "output_hidden_states": False,
}
"""Options that are refused unless they have the value that does nothing."""
_REFUSED = (
    "min_new_tokens", "min_p", "top_h", "bad_words_ids", "sequence_bias", "suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id",
    "forced_eos_token_id", "exponential_decay_length_penalty", "watermarking_config", "prompt_lookup_num_tokens", "assistant_early_exit",
    "penalty_alpha", "dola_layers", "constraints", "force_words_ids", "cache_implementation",
)  # fmt: skip
"""Options that are refused unless they are None."""
_HARMLESS = ("attention_mask", "position_ids", "past_key_values", "logits_to_keep", "use_cache")
"""What ``generate`` prepares for every model, and what follows from the prompt alone."""
_KEPT_BACK = ("streamer", "assistant_model", "synced_gpus")
"""Arguments that ``generate`` does not hand on to a callable; it drops them without a word."""


def dispatched(bundle: str | Path, *, family: Family | None = None) -> "DispatchedGenerate":
    """Return what ``generate`` takes as ``custom_generate``.

    Args:
        bundle: Folder that ``dispatch_rl.export`` wrote.
        family: The models, if they are loaded already; its target must be the model that generates. None loads the students, at the
            first call and onto the device of the model, from where they were when the bundle was exported, and captures CUDA graphs on
            a GPU.

    Raises:
        UserError: The bundle is broken.
    """
    return DispatchedGenerate(Path(bundle), family)


class DispatchedGenerate:
    """Writes what the model's own greedy or sampled decoding would write, with drafts of the students that the policy chooses.

    Greedy text is the model's, token for token. Sampled text has the model's distribution; it is fixed by ``seed``, an argument of
    ``generate`` that this adds, or else by torch's random state. The cache that ``generate`` prepares is not used nor returned. For stop
    strings give a ``StopStringCriteria``: ``generate`` keeps ``tokenizer``, which ``stop_strings`` needs, from every callable. A text ends
    where the context of the family's models does, though the model alone, beyond what it was made for, would go on.
    """

    def __init__(self, path: Path, family: Family | None) -> None:
        self._path = path
        self._lock = Lock()
        self._bundle = Bundle.read(path)
        self._family = family
        self._weights = None if family is None else _state(family.target.model)
        if family is not None:
            self._bundle.check_fits(family, path)
        self.last: Generated | None = None
        """The last text with its metrics."""

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        seed: int | None = None,
        **kwargs: Any,
    ) -> GenerateDecoderOnlyOutput | Tensor:
        """Called by ``generate`` once it has prepared its arguments.

        Args:
            model: The target.
            input_ids: The prompt ``[1, tokens]``.
            logits_processor: Temperature, top-k and top-p.
            stopping_criteria: Asked after every token.
            generation_config: All options.
            seed: Of the noise; None draws one from torch.
            **kwargs: What was prepared for the model's forward pass.

        Raises:
            UserError: An option asks for what dispatched decoding cannot do.
        """
        kept_back = _kept_back(sys._getframe(1))
        streamer = kwargs.pop("streamer", kept_back["streamer"])
        _check_options(generation_config, input_ids, {**kwargs, **{key: kept_back[key] for key in ("assistant_model", "synced_gpus")}})
        sampling = _sampling(logits_processor, generation_config, seed)
        limits = [criterion.max_length for criterion in stopping_criteria if type(criterion) is MaxLengthCriteria]
        ends = [criterion.eos_token_id.tolist() for criterion in stopping_criteria if type(criterion) is EosTokenCriteria]
        others = StoppingCriteriaList([c for c in stopping_criteria if type(c) not in (MaxLengthCriteria, EosTokenCriteria)])
        prompt: list[int] = input_ids[0].tolist()
        with self._lock:
            family = self._family_of(model, sampling)
        family = replace(family, eos_token_ids=frozenset(token for tokens in ends for token in tokens))
        longest = max(1, min(limits, default=family.context_limit) - len(prompt))  # `generate` asks after a token, not before
        writer = Writer(family, self._bundle.policy, self._bundle.arms, prompt, sampling, longest)
        self.last = written = _written(writer, input_ids, others, streamer) if others or streamer is not None else writer.write()
        sequences: Any = torch.tensor([[*prompt, *written.tokens]], device=input_ids.device)
        return GenerateDecoderOnlyOutput(sequences=sequences) if generation_config.return_dict_in_generate else sequences

    def _family_of(self, model: PreTrainedModel, sampling: Sampling) -> Family:
        if self._family is None or self._family.target.model is not model:
            if self._family is not None:
                raise UserError("custom_generate: the family's target is another model than the one that generates")
            # Tensors that are made in inference mode could not be trained again, and the model's become views of ours.
            with torch.inference_mode(False):
                family = load_family(self._bundle.family, target=model)
            self._bundle.check_fits(family, self._path)
            capture_graphs(family, self._bundle.arms, [sampling])
            self._family, self._weights = family, _state(model)
        if self._weights != _state(model):
            raise UserError("custom_generate: the model's weights have changed since its first text; train and export for the new ones")
        return self._family


def _state(model: PreTrainedModel) -> list[Any]:
    """Return what differs once weights were trained, loaded, converted or moved; what is written through ``p.data`` cannot be seen."""
    return [(id(p), p.device, p.dtype, 0 if p.is_inference() else p._version) for p in model.parameters()]


def _written(writer: Writer, prompt: Tensor, criteria: StoppingCriteriaList, streamer: BaseStreamer | None) -> Generated:
    """Write token by token, as ``generate`` does: each goes to the streamer, and then the criteria are asked."""
    sequence = prompt
    for token in writer.stream():
        new = torch.tensor([token.id], device=prompt.device)
        if streamer is not None:
            streamer.put(new.cpu())
        if criteria:
            sequence = torch.cat([sequence, new[None]], dim=-1)
            if bool(criteria(sequence, None).all()):
                break
    if streamer is not None:
        streamer.end()
    return writer.generated()


def _kept_back(frame: FrameType | None) -> dict[str, Any]:
    """Return the arguments of the ``generate`` that calls, of which it hands none to a callable.

    Without a look at them a streamer would fall silent and an assistant be ignored.
    """
    generate = getattr(GenerationMixin.generate, "__wrapped__", GenerationMixin.generate)
    found = frame.f_locals if frame is not None and frame.f_code is generate.__code__ else {}
    return {key: found.get(key) for key in _KEPT_BACK}


def _check_options(config: GenerationConfig, input_ids: Tensor, others: Mapping[str, Any]) -> None:
    """Refuse by name what cannot be done."""
    asked = {name: getattr(config, name, None) for name in (*_REFUSED, *_NEUTRAL)}
    for name, value in asked.items():
        if value is not None and (name in _REFUSED or value != _NEUTRAL[name]):
            raise UserError(f"{name}: dispatched decoding cannot do {value!r}; leave it out")
    if len(input_ids) != 1:
        raise UserError(f"input_ids: dispatched decoding writes one text at a time, not {len(input_ids)}")
    if input_ids.shape[1] == 0:
        raise UserError("input_ids: the prompt is empty; inputs_embeds cannot stand in for it")
    mask, cache = others.get("attention_mask"), others.get("past_key_values")
    if mask is not None and not bool((mask == 1).all()):
        raise UserError("attention_mask: dispatched decoding reads every token of the prompt; take the padding off")
    if cache is not None and cache.get_seq_length() > 0:
        raise UserError("past_key_values: dispatched decoding keeps its own cache; leave it out")
    positions = others.get("position_ids")
    if positions is not None and positions.flatten().tolist() != list(range(input_ids.shape[1])):
        raise UserError("position_ids: dispatched decoding counts positions from 0; leave them out")
    for name, value in others.items():
        if name not in _HARMLESS and value is not None and value is not False:
            raise UserError(f"{name}: dispatched decoding cannot use it; leave it out")


def _sampling(processors: LogitsProcessorList, config: GenerationConfig, seed: int | None) -> Sampling:
    """Return what the prepared ``processors`` do.

    Raises:
        UserError: One of them is neither temperature, top-k nor top-p, or they stand in another order.
    """
    order: list[type] = [TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper]
    kinds: Sequence[type] = [type(processor) for processor in processors]
    for kind in kinds:
        if kind not in order:
            raise UserError(f"logits_processor: dispatched decoding cannot apply {kind.__name__}; it knows temperature, top_k and top_p")
    if sorted(set(kinds), key=order.index) != list(kinds):
        raise UserError("logits_processor: dispatched decoding applies temperature, top_k and top_p once and in this order")
    if not config.do_sample:
        if processors:
            raise UserError(f"logits_processor: {kinds[0].__name__} needs do_sample=True")
        return Sampling()
    found = dict(zip(kinds, processors, strict=True))
    for kind, processor in found.items():
        if getattr(processor, "filter_value", -math.inf) != -math.inf or getattr(processor, "min_tokens_to_keep", 1) != 1:
            raise UserError(f"logits_processor: dispatched decoding cannot apply {kind.__name__} with filter_value or min_tokens_to_keep")

    def value(kind: type, name: str) -> Any:
        return getattr(found[kind], name) if kind in found else None

    method: Literal["coupled"] = "coupled"
    return Sampling(
        temperature=value(TemperatureLogitsWarper, "temperature") or 1.0,
        top_k=value(TopKLogitsWarper, "top_k"),
        top_p=value(TopPLogitsWarper, "top_p"),
        seed=int(torch.randint(2**63 - 1, ())) if seed is None else seed,
        method=method,
    )
