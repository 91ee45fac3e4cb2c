"""Chat templates that ``--chat-template`` knows by name, and those that a JSON file describes. Data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Builtin:
    """A jinja source and the strings that end the assistant's turn."""

    source: str
    stop: tuple[str, ...]


CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""

LLAMA_2 = """\
{%- set ns = namespace(system='') %}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {%- set ns.system = '<<SYS>>\\n' ~ message.content ~ '\\n<</SYS>>\\n\\n' %}
    {%- elif message.role == 'user' %}
        {{- bos_token ~ '[INST] ' ~ ns.system ~ message.content.strip() ~ ' [/INST]' }}
        {%- set ns.system = '' %}
    {%- elif message.role == 'assistant' %}
        {{- ' ' ~ message.content.strip() ~ ' ' ~ eos_token }}
    {%- else %}
        {{- raise_exception("The llama-2 chat template has no role '" ~ message.role ~ "'.") }}
    {%- endif %}
{%- endfor %}"""

LLAMA_3 = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\\n\\n' ~ message.content.strip() ~ '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

VICUNA = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}
    {%- set system, turns = messages[0].content, messages[1:] %}
{%- else %}
    {%- set system = 'A chat between a curious user and an artificial intelligence assistant. The assistant gives '
        ~ "helpful, detailed, and polite answers to the user's questions." %}
    {%- set turns = messages %}
{%- endif %}
{{- system }}
{%- for message in turns %}
    {%- if message.role == 'user' %}
        {{- ' USER: ' ~ message.content }}
    {%- elif message.role == 'assistant' %}
        {{- ' ASSISTANT: ' ~ message.content ~ eos_token }}
    {%- else %}
        {{- raise_exception("The vicuna_v1.1 chat template has no role '" ~ message.role ~ "' after the first turn.") }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- ' ASSISTANT:' }}{% endif %}"""

MISTRAL = """\
{%- set ns = namespace(system='') %}
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {%- set ns.system = message.content ~ '\\n\\n' %}
    {%- elif message.role == 'user' %}
        {{- '[INST] ' ~ ns.system ~ message.content ~ ' [/INST]' }}
        {%- set ns.system = '' %}
    {%- elif message.role == 'assistant' %}
        {{- ' ' ~ message.content ~ eos_token }}
    {%- else %}
        {{- raise_exception("The mistral chat template has no role '" ~ message.role ~ "'.") }}
    {%- endif %}
{%- endfor %}"""

OPENCHAT = """\
{{- bos_token }}
{%- for message in messages %}
    {{- 'GPT4 Correct ' ~ message.role.title() ~ ': ' ~ message.content ~ '<|end_of_turn|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'GPT4 Correct Assistant:' }}{% endif %}"""

QWEN = """\
{%- if messages[0].role == 'system' %}
    {%- set system, turns = messages[0].content, messages[1:] %}
{%- else %}
    {%- set system, turns = 'You are a helpful assistant.', messages %}
{%- endif %}
{{- '<|im_start|>system\\n' ~ system }}
{%- if tools %}
    {{- '\\n\\n# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\n' }}
    {{- 'You are provided with function signatures within <tools></tools> XML tags:\\n<tools>' }}
    {%- for tool in tools %}{{- '\\n' ~ tool | tojson }}{% endfor %}
    {{- '\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments within ' }}
    {{- '<tool_call></tool_call> XML tags:\\n<tool_call>\\n{"name": <function-name>, "arguments": ' }}
    {{- '<args-json-object>}\\n</tool_call>' }}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- for message in turns %}
    {%- if message.role == 'tool' %}
        {%- if loop.first or loop.previtem.role != 'tool' %}{{- '<|im_start|>user' }}{% endif %}
        {{- '\\n<tool_response>\\n' ~ message.content ~ '\\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}{{- '<|im_end|>\\n' }}{% endif %}
    {%- else %}
        {{- '<|im_start|>' ~ message.role }}
        {%- if message.content %}{{- '\\n' ~ message.content }}{% endif %}
        {%- for call in message.tool_calls or [] %}
            {%- set function = call.function or call %}
            {{- '\\n<tool_call>\\n{"name": "' ~ function.name ~ '", "arguments": ' }}
            {{- function.arguments | tojson ~ '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""

BUILTIN: Mapping[str, Builtin] = {
    "chatml": Builtin(CHATML, ("<|im_end|>",)),
    "llama-2": Builtin(LLAMA_2, ("</s>",)),
    "llama-3": Builtin(LLAMA_3, ("<|eot_id|>",)),
    "llama3": Builtin(LLAMA_3, ("<|eot_id|>",)),
    "mistral": Builtin(MISTRAL, ("</s>",)),
    "mistral-instruct": Builtin(MISTRAL, ("</s>",)),
    "openchat": Builtin(OPENCHAT, ("<|end_of_turn|>",)),
    "qwen": Builtin(QWEN, ("<|im_end|>",)),
    "vicuna_v1.1": Builtin(VICUNA, ("</s>",)),
}


@dataclass(frozen=True)
class SepStyle:
    """What stands around messages in a template of a JSON file.

    Args:
        after_role: between a role and its message.
        open_role: after the assistant's role where its answer is to begin.
        after_sep: after every separator.
        system_sep: whether a separator follows the system message.
    """

    after_role: str
    open_role: str
    after_sep: str = ""
    system_sep: bool = True


SEP_STYLES: Mapping[str, SepStyle] = {
    "ADD_COLON_SINGLE": SepStyle(": ", ":"),
    "ADD_COLON_TWO": SepStyle(": ", ":"),
    "ADD_COLON_SPACE_SINGLE": SepStyle(": ", ": "),
    "ADD_NEW_LINE_SINGLE": SepStyle("\n", "\n"),
    "NO_COLON_SINGLE": SepStyle("", "", system_sep=False),
    "NO_COLON_TWO": SepStyle("", "", system_sep=False),
    "CHATML": SepStyle("\n", "\n", "\n"),
}

DESCRIBED = """\
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {{- described.system ~ '\\n' ~ message.content ~ (described.end if style.system_sep else '') }}
    {%- elif message.role == 'user' %}
        {{- described.user ~ style.after_role ~ message.content ~ described.end }}
    {%- elif message.role == 'assistant' %}
        {{- described.assistant ~ style.after_role ~ message.content ~ described.end_2 }}
    {%- else %}
        {{- raise_exception("This chat template has no role '" ~ message.role ~ "'.") }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- described.assistant ~ style.open_role }}{% endif %}"""
"""The source of every template of a JSON file, with its strings as ``described`` and its `SepStyle` as ``style``."""
