"""What a recording looks like on disk, so that other people's recordings can be converted to it.

One row per text. A recording is any of

- a folder with ``traces.json`` and one ``datasets`` Arrow folder per shard (what ``dispatch_rl.record`` writes),
- a folder written by ``datasets.Dataset.save_to_disk``,
- a ``.parquet`` or ``.jsonl`` file,

with the columns below. *Needed* is one of ``match_S`` and ``accepted_S`` for every student S; every other column may be missing, and the
features that need it are then off. A *position* is one token of the path; all lists of a row are equally long. Students stand in the
order of their columns, from cheap to expensive.

======================== ============== ===== =================================================================================
column                   type           unit  meaning
======================== ============== ===== =================================================================================
prompt_id                string               name of the prompt
kind                     string               what sort of text it is
prompt                   list<int32>          token ids of the prompt
path                     list<int32>          token ids that the target alone emits behind the prompt
limit                    int32          tok   longest text allowed, prompt included; without it all texts have the same, far off
seed                     uint64               seed of the noise
temperature, top_p       float64              as in decoding; null for off
top_k                    int32                as in decoding; null for off
entropy                  list<float32>  nats  target's entropy where it chose the token, before temperature
top1_probability         list<float32>  1     its largest probability there
margin                   list<float32>  nats  difference of its two largest logits there
match_S                  list<bool>           whether student S would have chosen the token
accepted_S               list<uint8>    tok   alternatively: how much of a long draft of S that begins here is accepted
entropy_S                list<float32>  nats  entropy of student S there
top1_probability_S       list<float32>  1     its largest probability there
margin_S                 list<float32>  nats  how clear its choice is there (:class:`~dispatch_rl.decoding.arms.Arm`, ``min_margin``)
second_S                 list<bool>           whether S's second choice is the token; arms with ``hedge_below`` need it and margins
beyond_margin_S          list<list>     nats  where S is wrong: how clear its choices would be behind its wrong token, up to the longest
                                              draft; the list ends where S ends the text. Elsewhere it is empty. Arms with ``min_margin``,
                                              ``min_confidence`` or ``hedge_below`` need it
beyond_entropy_S         list<list>     nats  the same for its entropies, which arms with ``max_entropy`` need
lookup_match             list<uint8>    tok   length of the prompt-lookup match before this token
lookup_drafted           list<uint8>    tok   how many tokens prompt lookup would draft from here, at most ``max_draft_length``
lookup_accepted          list<uint8>    tok   how many of them are accepted
======================== ============== ===== =================================================================================

``traces.json`` holds ``schema`` (1), ``students``, ``first_position``, ``max_draft_length``, ``num_prompts``, ``shard_size``,
``context_limits`` (longest text of each student), ``family`` (fingerprint of the models) and ``fingerprint`` (of models and settings).
Without it, decoding begins at position 0, that is, every token of the path is emitted by a round; our own recordings begin at 1, since
reading the prompt emits the first token. ``max_draft_length`` is then the largest accepted number, or 255 with ``match_S``. Accepted
numbers should go equally far for all students: an arm that drafts further than its student's do is counted too slow.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import datasets

VERSION = 1
METADATA = "traces.json"
LONGEST_DRAFT = 255
"""Draft lengths and runs of matches are kept in a byte."""

POSITION_FLOATS = ("entropy", "top1_probability", "margin")
LOOKUP_COLUMNS = ("lookup_match", "lookup_drafted", "lookup_accepted")
MATCH, ACCEPTED, SECOND, BEYOND = "match_", "accepted_", "second_", "beyond_"


def shard_name(shard: int) -> str:
    """Return the name of a shard's folder."""
    return f"shard-{shard:05d}"


def features(students: Sequence[str], watches: bool = False) -> "datasets.Features":
    """Return the types of all columns that ``dispatch_rl.record`` writes; if no arm ``watches``, less is recorded of students."""
    from datasets import Features, List, Value

    scalars = {"prompt_id": "string", "kind": "string", "limit": "int32", "seed": "uint64"}
    scalars |= {"temperature": "float64", "top_k": "int32", "top_p": "float64"}
    lists = {"prompt": "int32", "path": "int32", **dict.fromkeys(POSITION_FLOATS, "float32"), **dict.fromkeys(LOOKUP_COLUMNS, "uint8")}
    nested: dict[str, List] = {}
    for student in students:
        lists |= {f"match_{student}": "bool", f"entropy_{student}": "float32", f"top1_probability_{student}": "float32"}
        if watches:
            lists |= {f"margin_{student}": "float32", f"second_{student}": "bool"}
            nested |= dict.fromkeys((f"beyond_margin_{student}", f"beyond_entropy_{student}"), List(List(Value("float32"))))
    flat = {**{name: Value(kind) for name, kind in scalars.items()}, **{name: List(Value(kind)) for name, kind in lists.items()}}
    return Features(flat | nested)
