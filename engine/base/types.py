"""What crosses a process or a layer: requests, plans, results. Data only, no behaviour beyond trivial derivation.

Three owners (docs/design.md, section 2): *wire* types travel between the front process and the engine, *plan* types
from the scheduler to the executors, *result* types back. All are msgspec structs, so they can be recorded and replayed.
Those that every step makes are hidden from the garbage collector (``gc=False``): none can be part of a cycle.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import msgspec

from sgl.engine.base.ledger import StepNote

if TYPE_CHECKING:
    import ctypes


class Grammar(msgspec.Struct, frozen=True, array_like=True):
    """A constraint on the output: ``kind`` names the language that ``source`` is written in."""

    kind: Literal["json_schema", "regex", "ebnf", "structural_tag"]
    source: str


class Processor(msgspec.Struct, frozen=True, array_like=True):
    """A registered logit processor by its name, and its parameters as a JSON object."""

    name: str
    params: str = "{}"


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the next token is chosen and when generation ends. Defaults are SGLang's.

    Stop *strings* are not here: the front process finds them in the decoded text and aborts the request.
    """

    max_new_tokens: int = 128
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    seed: int = 0  # the front process draws one where the client gave none
    logit_bias: tuple[tuple[int, float], ...] = ()
    grammar: Grammar | None = None
    processor: Processor | None = None


class Wants(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a request wants back besides tokens.

    ``logprob_start`` is the first *prompt* position whose logprob is wanted, or None for none of them: position ``p``
    asks for ``log P(token[p] | token[:p])``, so 0 yields None for the first token and values from 1 on.
    """

    logprobs: bool = False
    logprob_start: int | None = None
    top_logprobs: int = 0
    token_logprob_ids: tuple[int, ...] = ()
    hidden: bool = False


class PoolingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A request for one vector (an embedding, or scores of classes) in place of tokens.

    ``dimensions`` cuts the vector to its first entries, which are then scaled to length one; None leaves it whole.
    ``second_from`` is where the second of two texts begins, None where there is one.
    """

    dimensions: int | None = None
    second_from: int | None = None


class Request(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One sequence to extend. Already validated: the engine asserts, it does not check again.

    ``embeds``, float32 [P, hidden], stands in for the embeddings of the P prompt tokens, whose ids then mean nothing.
    """

    rid: str
    token_ids: tuple[int, ...]
    embeds: bytes = b""
    params: SamplingParams = SamplingParams()
    wants: Wants = Wants()
    eos_ids: tuple[int, ...] = ()
    priority: int = 0
    cache_salt: str = ""
    adapter: str = ""
    arrival_s: float = 0.0
    pooling: PoolingParams | None = None  # the request wants a vector instead of tokens


# ---- wire, front to engine -------------------------------------------------------------------------------------------


class Add(msgspec.Struct, frozen=True, tag="add"):
    request: Request


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    """Ends one request, in whatever state it is."""

    rid: str
    reason: str = "aborted"


class Call(msgspec.Struct, frozen=True, tag="call"):
    """A control operation answered by one `Reply` of the same ``call_id``: flush, stats, server_info, ping, ..."""

    call_id: int
    name: str
    args: dict[str, Any] = {}


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    pass


Inbound = Add | Abort | Call | Shutdown


# ---- wire, engine to front -------------------------------------------------------------------------------------------


class FinishReason(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why a request ended. ``matched`` is the stop token id; stop strings are filled in by the front process."""

    kind: Literal["stop", "length", "abort"]
    matched: int | str | None = None
    message: str = ""
    status: int = 200
    code: str = ""
    param: str = ""


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One token's log probability (None where nothing precedes it) and the most likely alternatives at its position."""

    token_id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()
    chosen: tuple[tuple[int, float], ...] = ()


class Output(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """What one step added to one request. Fields are increments, not totals, except the counts."""

    rid: str
    token_ids: list[int] = []
    logprobs: list[TokenLogprob] = []
    prompt_logprobs: list[TokenLogprob] = []
    hidden: list[bytes] = []  # float32, one for each position computed since the last output
    pooled: bytes = b""  # of a request with pooling, on its last output: float32, little endian
    finish: FinishReason | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    num_preempted: int = 0
    queue_time_s: float = 0.0
    grammar_time_s: float = 0.0  # from the request's arrival until its grammar was there


class Outputs(msgspec.Struct, frozen=True, tag="outputs"):
    """``step`` is the one that they are of, if ledgers are kept; it may have brought no output."""

    items: list[Output]
    step: StepNote | None = None


class Reply(msgspec.Struct, frozen=True, tag="reply"):
    """Answer to a `Call`: ``value`` on success, ``error`` (a sentence) with ``status`` and ``param`` otherwise."""

    call_id: int
    value: dict[str, Any] | None = None
    error: str | None = None
    status: int = 400
    param: str | None = None


class Stats(msgspec.Struct, frozen=True, tag="stats", kw_only=True):
    """A snapshot for gauges, sent at most a few times a second; doubles as the engine's heartbeat."""

    num_running: int = 0
    num_waiting: int = 0
    num_used_tokens: int = 0
    num_total_tokens: int = 0
    cache_hit_rate: float = 0.0
    gen_throughput: float = 0.0
    num_preempted: int = 0
    step_id: int = 0


Outbound = Outputs | Reply | Stats


# ---- plan ------------------------------------------------------------------------------------------------------------

RowKind = Literal["none", "token", "pool"]


class PageRun(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Entries ``start, start+1, ...`` of a slot's page table (of one KV group) become ``pages``."""

    start: int
    pages: tuple[int, ...]
    group: int = 0


class TokenRun(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Tokens of a slot from place ``start`` on, which no step has sampled or one has sampled in vain."""

    start: int
    token_ids: tuple[int, ...]


class RowInit(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a device needs to know when a request first takes a slot.

    ``hidden_start`` is the first position whose hidden state is still owed, if any are wanted.
    """

    token_ids: tuple[int, ...]
    num_prompt: int
    params: SamplingParams
    wants: Wants
    eos_ids: tuple[int, ...]
    pooling: PoolingParams | None = None
    embeds: bytes = b""
    hidden_start: int = 0


class Row(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One request's share of a step.

    The step computes ``num_tokens`` positions from the slot's computed count on; the last ``num_draft`` of them hold
    draft tokens that the device proposed. ``kind`` says what follows: nothing (a chunk that does not reach the end of
    the known tokens), a sampled token, or pooling. ``computed`` resets the device's computed count before the step
    (first time in the slot, or pages adopted from the prefix cache); None leaves it as the device knows it.
    """

    rid: str
    slot: int
    num_tokens: int
    num_draft: int = 0
    kind: RowKind = "none"
    init: RowInit | None = None
    computed: int | None = None
    new_pages: PageRun | None = None
    new_tokens: TokenRun | None = None
    adapter_slot: int = 0


class StepPlan(msgspec.Struct, frozen=True):
    """A frozen snapshot of one step; shares no list with the scheduler. ``finished_slots`` were given up before it."""

    step_id: int
    rows: tuple[Row, ...]
    finished_slots: tuple[int, ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum(row.num_tokens for row in self.rows)


# ---- result ----------------------------------------------------------------------------------------------------------


class RowOutput(msgspec.Struct, kw_only=True, gc=False):
    """One row's outcome: ``token_ids`` are the accepted drafts plus one sampled token (empty for kind none)."""

    token_ids: list[int] = []
    logprobs: list[TokenLogprob] = []
    prompt_logprobs: list[TokenLogprob] = []
    hidden: list[bytes] = []
    pooled: bytes = b""
    error: str | None = None


class StepResult(Protocol):
    """The outcome of a step, still on its way from the device until `wait` returns (rows in plan order)."""

    def wait(self) -> list[RowOutput]: ...


UNSETTLED, LIMITED = -1, -2
"""In place of a token: it hangs on a mask; or it is to be drawn from logits that are limited to what may come."""


class HostDraws(NamedTuple):
    """Choices of tokens in the memory of the host.

    ``token_ids`` of all L draws are the likeliest ones, negative where the token is drawn at random, and are replaced;
    ``logits`` are float32 [L, width] at that address, 0 if there are none; ``draws`` those that are meant.
    """

    token_ids: ctypes.Array[ctypes.c_int64]
    draws: Sequence[int]
    logits: int = 0
    width: int = 0


class Masks(Protocol):
    """What grammars allow at the sampled positions of a step, by row index; every other row is free."""

    @property
    def rows(self) -> Collection[int]: ...

    def settle(self, rows: Sequence[int], draws: HostDraws, /) -> int:
        """The rows' tokens, as far as no mask is needed: the likeliest if that may come, or the only one that may.

        Where the likeliest token is at hand this costs less than a mask; where the logits are, a grammar may also find
        the likeliest of those that may come, or limit the logits that a token is drawn from. The row's grammar has
        advanced over a token that is found, which must be the one that is reported; otherwise there is `UNSETTLED` or
        `LIMITED` in its place. Returns how often.
        """

    def advance(self, rows: Sequence[int], draws: HostDraws, /) -> None:
        """Of the same rows, as many as were `LIMITED`, go on with the tokens that were drawn."""

    def read(self, rows: Sequence[int]) -> list[bytes]:
        """Masks of such rows: one bit per vocabulary entry, least significant bit first."""


class KnownMasks(msgspec.Struct, frozen=True):
    """`Masks` that were there before; whoever recorded them kept those that the sampled tokens hung on.

    ``forced`` are, by row, tokens beside which no other one may come.
    """

    by_row: dict[int, bytes] = {}
    forced: dict[int, int] = {}

    @property
    def rows(self) -> Collection[int]:
        return self.by_row.keys() | self.forced.keys()

    def settle(self, rows: Sequence[int], draws: HostDraws, /) -> int:
        settled = [self.forced.get(row, UNSETTLED) for row in rows]
        for draw, token_id in zip(draws.draws, settled, strict=True):
            draws.token_ids[draw] = token_id
        return settled.count(UNSETTLED)

    def advance(self, rows: Sequence[int], draws: HostDraws, /) -> None:
        raise AssertionError("a known mask limits no logits")

    def read(self, rows: Sequence[int]) -> list[bytes]:
        return [self.by_row[row] if row in self.by_row else _only(self.forced[row]) for row in rows]


def _only(token_id: int) -> bytes:
    """The mask that allows one token, as far as its byte."""
    return bytes(token_id // 8) + bytes([1 << token_id % 8])


class Executor(Protocol):
    """Executes plans in the order given; only a plan mutates its per-slot state (docs/design.md, section 3).

    ``forward`` starts the step's computation; ``sample`` finishes it and returns at once. A failed step raises from
    either or from ``wait``; the per-slot state of the plan's rows is undefined afterwards. Where speculation is on, the
    executor itself proposes the drafts of a slot's next row whenever it sampled for that slot.
    """

    def forward(self, plan: StepPlan) -> None: ...

    def sample(self, plan: StepPlan, masks: Masks) -> StepResult: ...

    def close(self) -> None: ...
