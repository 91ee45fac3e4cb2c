"""The request bodies of OpenAI's API with SGLang's extra fields, and what becomes of fields that have no effect.

Checks types only; ranges are the engine's to check.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec

from sgl.engine.api.request import SessionParams
from sgl.server.body import convert
from sgl.server.fields import Unsupported, asks, asks_beyond, refuse_unsupported, warn_ignored, without_empty

Int32 = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class StreamOptions(msgspec.Struct):
    """What a stream tells about tokens.

    Args:
        include_usage: whether a last chunk has the usage of the whole answer.
        continuous_usage_stats: whether every chunk has the usage so far.
    """

    include_usage: bool = False
    continuous_usage_stats: bool = False


class SchemaFormat(msgspec.Struct):
    """A JSON schema with a name. ``strict`` changes nothing: every schema is enforced."""

    name: str | None = None
    schema: dict[str, Any] | bool | None = None
    strict: bool | None = None
    description: str | None = None


class ResponseFormat(msgspec.Struct):
    """What the answer must look like.

    Args:
        type: text, json_object, json_schema or structural_tag.
        json_schema: for the type of that name.
        format: of a structural tag; or, in the older form, ``structures`` and ``triggers``.
    """

    type: str
    json_schema: SchemaFormat | None = None
    format: dict[str, Any] | None = None
    structures: list[dict[str, Any]] | None = None
    triggers: list[str] | None = None


class SamplingFields(msgspec.Struct, kw_only=True):
    """What chat and completions share. None stands for the default.

    Args:
        model: any name, unless the server is strict about it.
        temperature: 0 always takes the likeliest token; the default is 0.7 for chats and 1 elsewhere.
        top_p: only the likeliest tokens that together have this probability are drawn from.
        top_k: only so many of the likeliest tokens are drawn from; -1 for all.
        min_p: only tokens at least this likely, relative to the likeliest, are drawn from.
        max_tokens: how long an answer may be; the default is 16 in completions and what the context leaves in chats.
        min_tokens: how long an answer has to be.
        frequency_penalty: taken off a token's logit for each time that it has been generated.
        presence_penalty: taken off a token's logit once it has been generated.
        repetition_penalty: divides the logits of tokens that were seen; 1 for none.
        logit_bias: added to the logits of tokens, by token id.
        stop: a string or several at which the answer ends; they are no part of it.
        stop_token_ids: tokens at which the answer ends.
        ignore_eos: whether the answer goes on after the model's own end.
        skip_special_tokens: whether special tokens are left out of the text, which they are by default.
        no_stop_trim: whether the stop string or stop token stays in the text.
        seed: makes the answer reproducible.
        n: how many answers each prompt gets.
        stream: whether the answer comes in events as it grows.
        stream_options: what the events of a stream tell besides.
        response_format: what the answer must look like, in OpenAI's form; the next four are SGLang's: only one of all.
        json_schema: a JSON schema that the answer fits, as JSON text.
        regex: a regular expression that the whole answer matches.
        ebnf: a grammar whose rule ``root`` makes the answer.
        structural_tag: JSON text that says which parts of the answer are bound to a schema, and where they begin.
        session_params: what the prompt is appended to.
        custom_params: parameters of the logit processor.
        return_hidden_states: whether each choice has ``hidden_states``: the vector behind its last token.
        return_receipt: whether each choice carries what `sgl verify` needs to compute it again.
        user: ignored.
    """

    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int32 | None = None
    min_p: float | None = None
    max_tokens: Int32 | None = None
    min_tokens: Int32 | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[Int32] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    no_stop_trim: bool | None = None
    seed: Int64 | None = None
    n: Int32 | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    priority: Int32 | None = None
    cache_salt: str | None = None
    session_params: SessionParams | None = None
    custom_logit_processor: str | None = None
    custom_params: dict[str, Any] | None = None
    return_hidden_states: bool | None = None
    return_receipt: bool | None = None
    user: str | None = None
    response_format: ResponseFormat | None = None
    json_schema: str | dict[str, Any] | None = None
    regex: str | None = None
    ebnf: str | None = None
    structural_tag: str | dict[str, Any] | None = None


class ChatBody(SamplingFields, kw_only=True):
    """A conversation to go on with.

    Args:
        messages: what was said so far.
        max_completion_tokens: the current name of ``max_tokens``.
        logprobs: whether logprobs of the answer are wanted, with ``top_logprobs`` of the likeliest at each position.
        tools: functions that the model may call.
        tool_choice: none, auto, required, or which function to call.
        parallel_tool_calls: whether an answer may have several calls.
        functions: the deprecated form of ``tools``; ``function_call`` is that of ``tool_choice``.
        chat_template_kwargs: variables of the chat template.
        add_generation_prompt: whether the assistant's turn is opened.
        continue_final_message: whether the answer goes on with the last message, which is the assistant's.
        reasoning_effort: none, minimal, low, medium, high or xhigh, for templates that know it.
        separate_reasoning: whether reasoning stands apart from content.
        stream_reasoning: whether reasoning is streamed as it comes, or at once when it is over.
    """

    messages: list[dict[str, Any]]
    max_completion_tokens: Int32 | None = None
    logprobs: bool | None = None
    top_logprobs: Int32 | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    functions: list[dict[str, Any]] | None = None
    function_call: str | dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    reasoning_effort: str | None = None
    separate_reasoning: bool | None = None
    stream_reasoning: bool | None = None


class ToolFunction(msgspec.Struct):
    """What a tool must say about its function; further keys are the chat template's."""

    name: str
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct):
    function: ToolFunction
    type: Literal["function"] = "function"


class ToolList(msgspec.Struct):
    """What must be there in ``tools``, which reach the chat template as they are."""

    tools: list[Tool]


class CompletionBody(SamplingFields, kw_only=True):
    """Prompts to continue.

    Args:
        prompt: a text, a list of texts, a list of token ids or a list of such lists.
        echo: whether the prompt stands in front of each answer; with ``max_tokens`` 0 there is nothing else.
        logprobs: logprobs of the tokens (of an echoed prompt, too), and of so many of the likeliest at each position.
        best_of: how many answers are made, of which the ``n`` of the highest mean logprob are shown; not in a stream.
    """

    prompt: str | list[str | Int32 | list[Int32]]
    echo: bool | None = None
    logprobs: Int32 | None = None
    best_of: Int32 | None = None


UNSUPPORTED: Unsupported = {
    "lora_path": asks,
    "audio": asks,
    "modalities": asks_beyond(["text"]),
    "web_search_options": asks,
    "continue_final_message": asks,
    "suffix": asks,
    "best_of": asks_beyond(1),
}


def unsupported_beside(body: type[msgspec.Struct], harmless: Unsupported, *others: str) -> Unsupported:
    """For another API than chat's: fields of chats that it has not under their name, and ``others``.

    Args:
        harmless: fields that ask for nothing that is not there anyway, for some of their values.
    """
    known = {*body.__struct_fields__, *harmless}
    return {
        **{name: asks for name in ChatBody.__struct_fields__ if name not in known},
        **UNSUPPORTED,
        **dict.fromkeys(others, asks),
        "n": asks_beyond(1),
        "skip_special_tokens": asks_beyond(True),
        "separate_reasoning": asks_beyond(True),
        "stream_reasoning": asks_beyond(True),
    }


Body = TypeVar("Body", bound=SamplingFields)


def parse(raw: dict[str, Any], to: type[Body]) -> tuple[Body, list[str]]:
    """A request body, and a warning for every field in it that has no effect.

    Raises:
        SglError: 400 for a wrong type, or for a field that would change the answer and is not supported.
    """
    known = to.__struct_fields__
    refuse_unsupported(raw, {name: is_asked for name, is_asked in UNSUPPORTED.items() if name not in known})
    return convert(without_empty(raw), to), warn_ignored(raw, {*known, *UNSUPPORTED})
