"""Everything the scheduler knows about one request."""

from __future__ import annotations

from typing import Literal

import msgspec

from sgl.engine.base.errors import SglError
from sgl.engine.base.types import FinishReason, Output, PageRun, Request, Row, RowInit, TokenRun
from sgl.engine.core.grammar import OPEN, OVER, GrammarState, GrammarTicket, Standing
from sgl.engine.core.radix import TOKEN_BYTES, Namespace, RadixNode, token_key

Status = Literal["compiling", "waiting", "running", "finished"]

NO_ROW = Row(rid="", slot=-1, num_tokens=0)


_ROWS_PER_TOKEN = 4
"""With so many rows for every forced token, steps that compute several tokens of a row cost as much as they save."""


class RequestState:
    """A request on its way from *computed* to *known* tokens.

    Results arrive later than the plans that ask for them, so two pairs of counts exist: ``tokens`` is what is known
    for certain; ``known`` and ``computed`` are upper bounds that assume every step in flight accepts all its drafts.
    Without a step in flight the bounds are exact.

    ``max_tokens`` is the length at which the request ends whatever it says. Most steps of a request look like the one
    before: such a step is ``decode_row`` again, up to ``decode_end`` computed tokens.

    A grammar may settle tokens that no step has sampled. The device is told those from ``settled_from`` on with the
    next row; the results of ``num_void`` rows that were in flight by then tell nothing new. Where ``is_deferred`` the
    grammar had no time for the newest row: it has sampled nothing.
    """

    __slots__ = (
        "added_s",
        "arrival_key",
        "cached_tokens",
        "computed",
        "computed_dirty",
        "decode_end",
        "decode_row",
        "failure",
        "finish",
        "first_time",
        "grammar",
        "grammar_time_s",
        "has_draft",
        "hidden_sent",
        "inflight",
        "is_deferred",
        "key",
        "known",
        "match_pages",
        "match_version",
        "max_tokens",
        "namespace",
        "node",
        "num_preempted",
        "num_prompt",
        "num_shared",
        "num_void",
        "overdue_at",
        "pages",
        "pages_sent",
        "prompt_logprobs_sent",
        "queue_time_s",
        "queued_at_s",
        "request",
        "settled_from",
        "slot",
        "standing",
        "status",
        "stop_ids",
        "ticket",
        "tokens",
    )

    def __init__(self, request: Request, sequence: int, now_s: float) -> None:
        self.request = request
        self.grammar: GrammarState | None = None
        self.ticket: GrammarTicket | None = None
        self.standing: Standing = OPEN
        self.grammar_time_s = 0.0
        self.failure: FinishReason | None = None
        self.settled_from = -1
        self.num_void = 0
        self.is_deferred = False
        self.tokens = list(request.token_ids)
        self.num_prompt = len(self.tokens)
        self.max_tokens = self.num_prompt + request.params.max_new_tokens
        self.key = token_key(self.tokens)
        self.namespace: Namespace = (request.adapter, request.cache_salt)
        params = request.params
        self.stop_ids = frozenset(params.stop_token_ids) | (
            frozenset() if params.ignore_eos else frozenset(request.eos_ids)
        )
        self.arrival_key = (-request.priority, sequence)
        self.status: Status = "waiting"
        self.finish: FinishReason | None = None
        self.inflight = 0
        self.known = self.num_prompt
        self.computed = 0
        self.slot = -1
        self.node: RadixNode | None = None
        self.pages: list[int] = []
        self.num_shared = 0
        self.pages_sent = 0
        self.computed_dirty = False
        self.first_time = True
        self.has_draft = False
        self.decode_row = NO_ROW
        self.decode_end = 0
        self.cached_tokens = 0
        self.prompt_logprobs_sent = 0
        self.hidden_sent = 0
        self.num_preempted = 0
        self.added_s = self.queued_at_s = now_s
        self.queue_time_s = 0.0
        self.overdue_at = 0
        self.match_version = -1
        self.match_pages = 0

    @property
    def num_output(self) -> int:
        """Tokens generated for certain."""
        return len(self.tokens) - self.num_prompt

    @property
    def has_begun(self) -> bool:
        """Whether anything of the answer has been sent."""
        return bool(self.num_output or self.prompt_logprobs_sent or self.hidden_sent)

    @property
    def logprob_start(self) -> int | None:
        """First prompt position whose logprob is still owed, None when none is."""
        start = self.request.wants.logprob_start
        if start is None:
            return None
        start += self.prompt_logprobs_sent
        return start if start < self.num_prompt else None

    def match_limit(self) -> int:
        """How many leading tokens may come from the cache: one must be computed, and all whose results are wanted."""
        limit = len(self.tokens) - 1
        if self.request.wants.hidden:
            limit = min(limit, self.hidden_sent)
        start = self.logprob_start
        return limit if start is None else min(limit, max(start - 1, 0))

    def key_of(self, begin_page: int, end_page: int, page_size: int) -> bytes:
        """The cache key of a run of pages."""
        width = page_size * TOKEN_BYTES
        return self.key[begin_page * width : end_page * width]

    def sync_key(self) -> None:
        """Extends the key over the generated tokens; done when they are needed, not per token."""
        have = len(self.key) // TOKEN_BYTES
        if have < len(self.tokens):
            self.key += token_key(self.tokens[have:])

    def row_init(self) -> RowInit:
        """What the device is told when the request takes a slot."""
        request = self.request
        return RowInit(
            token_ids=tuple(self.tokens),
            num_prompt=self.num_prompt,
            params=request.params,
            wants=msgspec.structs.replace(request.wants, logprob_start=self.logprob_start),
            eos_ids=request.eos_ids,
            embeds=request.embeds,
            pooling=request.pooling,
            hidden_start=self.hidden_sent,
        )

    def unsent_pages(self) -> PageRun | None:
        """Those that the device is told of with the next row."""
        begin, self.pages_sent = self.pages_sent, len(self.pages)
        return PageRun(begin, tuple(self.pages[begin:])) if begin < len(self.pages) else None

    def unsent_tokens(self) -> TokenRun | None:
        """Those that a grammar has settled and the device is told of with the next row."""
        begin, self.settled_from = self.settled_from, -1
        return TokenRun(begin, tuple(self.tokens[begin:])) if begin >= 0 else None

    def accept(self, token_id: int) -> FinishReason | None:
        """Appends one token; says whether that ends the request."""
        self.tokens.append(token_id)
        if token_id in self.stop_ids and self.num_output > self.request.params.min_new_tokens:
            return FinishReason(kind="stop", matched=token_id)
        if self.grammar is not None:
            self.standing = self.grammar.accept(token_id)
            if self.standing == OVER:
                return FinishReason(kind="stop")
        if len(self.tokens) >= self.max_tokens:
            return FinishReason(kind="length")
        return None

    def jump(self, num_running: int) -> tuple[list[int], FinishReason | None]:
        """Takes in the tokens that the grammar forces, if that is worth it; the next step computes them together.

        Each saves this request a step, of which it has one part in ``num_running``, and all pay for a step that is not
        plain decoding.

        A row in flight samples the first of them, since its mask will allow nothing else; to jump over that one alone
        saves nothing. Whoever wants something of every sampled token does not want it to be skipped.
        """
        wants = self.request.wants
        if self.grammar is None or wants.logprobs or wants.hidden:
            return [], None
        forced = self.grammar.forced()
        if len(forced) <= max(self.inflight, num_running // _ROWS_PER_TOKEN):
            return [], None
        begin = len(self.tokens)
        for token_id in forced:
            finish = self.accept(token_id)
            if finish is not None:
                return self.tokens[begin:], finish
        self.settled_from, self.num_void = begin, self.inflight
        self.known, self.decode_end = len(self.tokens), 0
        self.sync_key()
        return self.tokens[begin:], None

    def sample_again(self) -> None:
        """Its grammar had no mask in time: the last token is computed anew, and what is in flight tells nothing."""
        self.num_void = self.inflight
        self.computed, self.known = len(self.tokens) - 1, len(self.tokens)
        self.computed_dirty, self.decode_end = True, 0

    def describe(self, output: Output) -> None:
        """Adds the totals that go with the first and the last output."""
        output.prompt_tokens = self.num_prompt
        output.cached_tokens = self.cached_tokens
        output.num_preempted = self.num_preempted
        output.queue_time_s = self.queue_time_s
        output.grammar_time_s = self.grammar_time_s


def refusal(error: SglError) -> FinishReason:
    """The end of a request that cannot be taken."""
    return FinishReason(
        kind="abort", message=error.message, status=error.status, code=error.code, param=error.param or ""
    )
