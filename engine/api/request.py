"""What goes into the engine's API and what comes out of it. Data only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from sgl.engine.base.types import FinishReason, PoolingParams, Request, SamplingParams, TokenLogprob


class SessionParams(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Which sequence of a session a request goes on from; see `sgl.engine.api.sessions`.

    Args:
        id: of the session.
        rid: the request of the session to append to; None begins a sequence of its own.
        offset: how many of that sequence's tokens stay, counted from the end if negative; None and 0 for all.
        replace: whether what was appended to ``rid`` before (everything in the session, if None) is dropped.
        drop_previous_output: whether only the prompt of ``rid`` stays, not its answer.
    """

    id: str
    rid: str | None = None
    offset: int | None = None
    replace: bool | None = False
    drop_previous_output: bool | None = False


class GenerateRequest(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One prompt to answer, ``n`` times.

    Args:
        rid: name of the request, unique among those running; drawn if None.
        text: the prompt; or ``input_ids``, or ``input_embeds`` (a vector for each token), exactly one of them.
        add_special_tokens: whether the tokenizer frames ``text`` (BOS); not for rendered chats, which hold them.
        sampling: its ``seed`` is replaced by ``seed``.
        fit_max_new_tokens: whether ``sampling.max_new_tokens`` is cut to what the context leaves, instead of refused.
        seed: of the first answer, counted up for the others; drawn if None.
        stop: strings that end an answer; not before ``sampling.min_new_tokens`` tokens.
        no_stop_trim: whether the stop string or stop token stays in the text.
        stream: whether items come as the answer grows, or one at its end.
        return_logprob: whether logprobs of the answer are wanted; the next three count only then.
        logprob_start_len: first prompt position whose logprob is wanted too, -1 for none.
        top_logprobs_num: how many likeliest tokens come with each logprob.
        token_ids_logprob: tokens whose logprobs come with each logprob.
        return_text_in_logprobs: whether logprobs show the text of tokens, in SGLang's form.
        return_hidden_states: whether the last hidden states come with the answer.
        return_receipt: whether the answer can be given a receipt; see `sgl.engine.api.receipt`.
        session: what the prompt is appended to, if it is part of a session.
        custom_logit_processor: the name of a registered processor and parameters, as `CustomLogitProcessor.to_str`
            gives them; ``custom_params`` come on top.
        pooling: the request wants a vector, not text; see `sgl.engine.api.embed`, which makes such requests.
        priority: higher runs first.
        cache_salt: requests share cached prefixes only with those of the same salt.
    """

    rid: str | None = None
    text: str | None = None
    input_ids: Sequence[int] | None = None
    input_embeds: Sequence[Sequence[float]] | None = None
    add_special_tokens: bool = True
    sampling: SamplingParams = SamplingParams()
    fit_max_new_tokens: bool = False
    seed: int | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    no_stop_trim: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    stream: bool = False
    return_logprob: bool = False
    logprob_start_len: int = -1
    top_logprobs_num: int = 0
    token_ids_logprob: tuple[int, ...] = ()
    return_text_in_logprobs: bool = False
    return_hidden_states: bool = False
    return_receipt: bool = False
    session: SessionParams | None = None
    custom_logit_processor: str | None = None
    custom_params: dict[str, Any] | None = None
    pooling: PoolingParams | None = None
    priority: int = 0
    cache_salt: str = ""


@dataclass(slots=True)
class Transcript:
    """Everything that an answer has brought so far. Only ever appended to, so that items can share it."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    hidden: list[bytes] = field(default_factory=list)  # float32, by position
    pooled: bytes = b""  # the vector of a request with pooling: float32, little endian


class Generation(msgspec.Struct, kw_only=True):
    """The state of one answer, and what is new since the item before it.

    Args:
        rid: of the request; ``rid:index`` if it has several answers.
        index: which answer, from 0.
        text: all of it so far; ``delta`` is the new end of it.
        token_ids: the new ones.
        finish_reason: on the last item; ``matched`` is the stop string or token id.
        output_logprobs: of the new tokens.
        input_logprobs: of the prompt, from ``logprob_start_len`` on; on the first item only.
        grammar_time_s: how long its grammar was waited for; 0 without one.
        first_token_s: when the first token arrived, on `time.monotonic`'s clock; None before, and if there is none.
        warnings: what was done otherwise than asked; on the first item only.
        transcript: of the answer, perhaps ahead of this item.
        asked: what the engine was sent, where a receipt is wanted.
        num_updates: which weights it was computed with: how often they had been exchanged.
        receipt: on the last item, where one is wanted; see `sgl.engine.api.receipt`.
    """

    rid: str
    index: int
    text: str
    delta: str
    token_ids: list[int]
    finish_reason: FinishReason | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    output_logprobs: list[TokenLogprob]
    input_logprobs: list[TokenLogprob]
    queue_time_s: float
    grammar_time_s: float
    first_token_s: float | None
    warnings: tuple[str, ...]
    transcript: Transcript
    asked: Request | None = None
    num_updates: int = 0
    receipt: dict[str, Any] | None = None

    @property
    def output_ids(self) -> list[int]:
        """All tokens of the answer so far."""
        return self.transcript.token_ids[: self.completion_tokens]

    @property
    def all_output_logprobs(self) -> list[TokenLogprob]:
        """Of all tokens of the answer so far."""
        return self.transcript.logprobs[: self.completion_tokens]

    @property
    def hidden_states(self) -> list[bytes]:
        """One for each token of the prompt and of the answer but its last, which the model was not given any more."""
        return self.transcript.hidden[: self.prompt_tokens + max(self.completion_tokens - 1, 0)]
