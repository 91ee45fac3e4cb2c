"""One answer as it grows: from the engine's tokens to text, stop strings and logprobs; sends nothing itself."""

from __future__ import annotations

import time
from collections.abc import Sequence

from sgl.engine.api.request import GenerateRequest, Generation, Transcript
from sgl.engine.base.types import FinishReason, Output, Request, TokenLogprob
from sgl.engine.text.stop import StopChecker
from sgl.engine.text.tokenizer import Tokenizer


class Answer:
    """Collects what the engine sends until somebody takes it; a slow reader gets fewer and larger items.

    Args:
        rid: of this answer.
        interval: how many tokens a streamed item should have at least.
        after: the last tokens of the prompt.
        first: the first answer of the same request, whose logprobs of the prompt are those of all its answers.

    Attributes:
        asked: what the engine was sent, where a receipt is wanted.
        num_updates: see `Generation`.
    """

    def __init__(
        self,
        request: GenerateRequest,
        rid: str,
        index: int,
        tokenizer: Tokenizer,
        interval: int,
        warnings: tuple[str, ...],
        after: Sequence[int] = (),
        first: Answer | None = None,
    ) -> None:
        self.rid = rid
        self.index = index
        self.finish: FinishReason | None = None
        self.asked: Request | None = None
        self.num_updates = 0
        self._min_new_tokens = request.sampling.min_new_tokens
        self._keep_stop = request.no_stop_trim
        self._stream = request.stream
        self._interval = interval
        self._warnings = warnings
        self._detokenizer = tokenizer.detokenizer(
            request.skip_special_tokens, request.spaces_between_special_tokens, after
        )
        self._checker = StopChecker(request.stop, keep=request.no_stop_trim)
        self._first = first
        prompt_logprobs: list[TokenLogprob] = [] if first is None else first._transcript.prompt_logprobs
        self._transcript: Transcript = Transcript(prompt_logprobs=prompt_logprobs)
        self._text = ""
        self._delta: list[str] = []
        self._num_taken = 0  # tokens that were part of an item
        self._began = False
        self._first_token_s: float | None = None
        self._last = Output(rid=rid)

    @property
    def token_ids(self) -> list[int]:
        """All tokens so far; grows."""
        return self._transcript.token_ids

    @property
    def has_begun(self) -> bool:
        """Whether its first token has come, and with it all that is told of the prompt."""
        return bool(self._transcript.token_ids) or self.finish is not None

    @property
    def is_due(self) -> bool:
        """Whether there is an item to take."""
        if self._first is not None and not self._first.has_begun:  # which brings the logprobs of the prompt
            return False
        if self.finish is not None or not self._stream:
            return self.finish is not None
        num_new = len(self._transcript.token_ids) - self._num_taken
        return num_new >= (self._interval if self._num_taken else 1)

    def add(self, output: Output) -> None:
        """Takes in what a step brought. A stop string ends the answer, whatever the engine thinks."""
        if self.finish is not None:
            return
        if output.prompt_tokens:
            self._last = output
        if output.token_ids and self._first_token_s is None:
            self._first_token_s = time.monotonic()
        transcript, finish = self._transcript, output.finish
        if output.prompt_logprobs:
            transcript.prompt_logprobs += output.prompt_logprobs
        if output.hidden:
            transcript.hidden += output.hidden
        transcript.pooled = output.pooled or transcript.pooled
        silent = finish.matched if finish is not None and not self._keep_stop else None
        for position, token_id in enumerate(output.token_ids):
            transcript.token_ids.append(token_id)
            if output.logprobs:
                transcript.logprobs.append(output.logprobs[position])
            is_stop = token_id == silent and position == len(output.token_ids) - 1
            self._extend(self._detokenizer.push(() if is_stop else (token_id,)))
            if self._checker.matched is not None:
                break
        if finish is not None:
            self.end(finish)
        elif self._checker.matched is not None:
            self.finish = FinishReason(kind="stop", matched=self._checker.matched)

    def end(self, finish: FinishReason) -> None:
        """Ends the answer for a reason, unless its text has a better one."""
        self._extend(self._detokenizer.finish())
        self._delta.append(self._checker.finish())
        matched = self._checker.matched
        self.finish = finish if matched is None else FinishReason(kind="stop", matched=matched)

    def take(self) -> Generation:
        """Everything since the last call."""
        delta, tokens = "".join(self._delta), self._transcript.token_ids[self._num_taken :]
        item = Generation(
            rid=self.rid,
            index=self.index,
            text=self._text + delta,
            delta=delta,
            token_ids=tokens,
            finish_reason=self.finish,
            prompt_tokens=self._last.prompt_tokens,
            completion_tokens=self._num_taken + len(tokens),
            cached_tokens=self._last.cached_tokens,
            output_logprobs=self._transcript.logprobs[self._num_taken :],
            input_logprobs=[] if self._began else list(self._transcript.prompt_logprobs),
            queue_time_s=self._last.queue_time_s,
            grammar_time_s=self._last.grammar_time_s,
            first_token_s=self._first_token_s,
            warnings=() if self._began else self._warnings,
            transcript=self._transcript,
            asked=self.asked,
            num_updates=self.num_updates,
        )
        self._text, self._num_taken, self._began = item.text, item.completion_tokens, True
        self._delta.clear()
        return item

    def _extend(self, text: str) -> None:
        """Text of the first ``min_new_tokens`` tokens is not searched for stop strings."""
        searched = len(self._transcript.token_ids) > self._min_new_tokens
        self._delta.append(self._checker.push(text) if searched else text)
