"""Everything the scheduler knows about one request."""

from __future__ import annotations

from typing import Literal

from sgl.engine.base.types import FinishReason, Request, Row
from sgl.engine.core.grammar import GrammarState
from sgl.engine.core.radix import TOKEN_BYTES, Namespace, RadixNode, token_key

Status = Literal["waiting", "running", "finished"]

NO_ROW = Row(rid="", slot=-1, num_tokens=0)


class RequestState:
    """A request on its way from *computed* to *known* tokens.

    Results arrive later than the plans that ask for them, so two pairs of counts exist: ``tokens`` is what is known
    for certain; ``known`` and ``computed`` are upper bounds that assume every step in flight accepts all its drafts.
    Without a step in flight the bounds are exact.

    ``max_tokens`` is the length at which the request ends whatever it says. Most steps of a request look like the one
    before: such a step is ``decode_row`` again, up to ``decode_end`` computed tokens.
    """

    __slots__ = (
        "arrival_key",
        "cached_tokens",
        "computed",
        "computed_dirty",
        "decode_end",
        "decode_row",
        "finish",
        "first_time",
        "grammar",
        "has_draft",
        "inflight",
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
        "overdue_at",
        "pages",
        "pages_sent",
        "prompt_logprobs_sent",
        "queue_time_s",
        "queued_at_s",
        "request",
        "slot",
        "status",
        "stop_ids",
        "tokens",
    )

    def __init__(self, request: Request, sequence: int, now_s: float, grammar: GrammarState | None) -> None:
        self.request = request
        self.grammar = grammar
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
        self.num_preempted = 0
        self.queued_at_s = now_s
        self.queue_time_s = 0.0
        self.overdue_at = 0
        self.match_version = -1
        self.match_pages = 0

    @property
    def num_output(self) -> int:
        """Tokens generated for certain."""
        return len(self.tokens) - self.num_prompt

    @property
    def logprob_start(self) -> int | None:
        """First prompt position whose logprob is still owed, None when none is."""
        start = self.request.wants.logprob_start
        if start is None:
            return None
        start += self.prompt_logprobs_sent
        return start if start < self.num_prompt else None

    def match_limit(self) -> int:
        """How many leading tokens may come from the cache: one must be computed, and all whose logits are wanted."""
        limit = len(self.tokens) - 1
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
