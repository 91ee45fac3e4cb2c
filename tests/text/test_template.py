"""Chat templates, against transformers' rendering and the formats that model cards give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from sgl.engine.base.errors import ConfigError, ModelError, SglError
from sgl.engine.text import template as template_module
from sgl.engine.text.template import ChatTemplate, load_template
from sgl.engine.text.tokenizer import Tokenizer, load_tokenizer
from tests.text import vocabularies

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi <b> é"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye"},
]
TOOLS = [{"type": "function", "function": {"name": "add", "description": "<adds>", "parameters": {"type": "object"}}}]
SOURCES = {
    "loops": """{%- for m in messages %}{%- if loop.index > 3 %}{% break %}{% endif %}
        {{- bos_token + m['role'] + ': ' + m['content'] | trim + eos_token + '\\n' }}
    {%- endfor %}
    {%- if add_generation_prompt %}
    A:
    {%- endif %}""",
    "tools": "{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}{{ messages[-1].content | tojson }}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}|{% endfor %}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "undefined": "{{ nothing }}{{ documents is none }}{{ thinking is defined and thinking }}",
}


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return load_tokenizer(vocabularies.write(tmp_path, vocabularies.byte_level()))


def with_template(directory: Path, template: Any) -> ChatTemplate:
    vocabularies.write(directory, vocabularies.byte_level(), {"chat_template": template})
    return load_template(load_tokenizer(directory))


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("open_turn", [True, False])
def test_renders_as_transformers_does(tmp_path: Path, name: str, tools: Any, open_turn: bool) -> None:
    ours = with_template(tmp_path, SOURCES[name])
    theirs = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(
        CHAT, tools=tools, tokenize=False, add_generation_prompt=open_turn, thinking=True
    )
    assert ours.render(CHAT, tools, add_generation_prompt=open_turn, variables={"thinking": True}) == theirs


def test_named_templates(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    template = with_template(tmp_path, named)
    assert (template.render(CHAT), template.render(CHAT, TOOLS)) == ("plain", "tools")
    assert load_template(load_tokenizer(tmp_path), "tool_use").render(CHAT) == "tools"


def test_template_files_win(tmp_path: Path) -> None:
    with_template(tmp_path, "configured")
    (tmp_path / "chat_template.jinja").write_text("file")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("rag")
    tokenizer = load_tokenizer(tmp_path)
    assert load_template(tokenizer).render(CHAT) == "file"
    assert load_template(tokenizer, "rag").render(CHAT) == "rag"


def test_without_a_template_the_flag_is_named(tokenizer: Tokenizer) -> None:
    template = load_template(tokenizer)
    assert not template
    with pytest.raises(SglError, match="--chat-template") as caught:
        template.render(CHAT)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("{{ raise_exception('Roles must alternate!') }}", "Roles must alternate!"),
        ("{{ messages[0].content.x.y }}", "has no attribute 'x'"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages.append(1) }}", "not safe|immutable|unsafe"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
    ],
)
def test_what_a_template_refuses_is_the_clients_to_know(tmp_path: Path, source: str, sentence: str) -> None:
    template = with_template(tmp_path, source)
    with pytest.raises(SglError, match=sentence) as caught:
        template.render(CHAT)
    assert (caught.value.status, caught.value.param) == (400, "messages")


def test_output_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = with_template(tmp_path, "{% for i in range(99999) %}{{ messages[0].content }}{% endfor %}")
    monkeypatch.setattr(template_module, "MAX_PROMPT_CHARS", 1000)
    with pytest.raises(SglError, match="beyond its limits"):
        template.render(CHAT)
    monkeypatch.undo()
    monkeypatch.setattr(template_module, "MAX_RENDER_S", 0.0)
    with pytest.raises(SglError, match="beyond its limits"):
        template.render(CHAT)


def test_variables_cannot_replace_the_conversation(tmp_path: Path) -> None:
    with pytest.raises(SglError, match="must not set messages"):
        with_template(tmp_path, "x").render(CHAT, variables={"messages": []})


def test_messages_are_brought_to_the_form_of_templates(tmp_path: Path) -> None:
    template = with_template(tmp_path, "{{ messages | tojson }}")
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    odd = {"type": "function", "function": {"name": "f", "arguments": "not json"}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]},
        {"role": "assistant", "content": None, "tool_calls": [call, odd]},
        {"role": "user", "content": "x", "tool_calls": {"name": "f", "arguments": {}}},
    ]
    before = json.dumps(messages)
    rendered = json.loads(template.render(messages))
    assert json.dumps(messages) == before
    assert rendered[0]["content"] == "a\nb"
    assert rendered[1] == messages[1]
    assert rendered[2]["content"] == ""
    assert [c["function"]["arguments"] for c in rendered[2]["tool_calls"]] == [{"x": 1}, "not json"]
    assert rendered[3] == messages[3]


def test_invalid_jinja_is_found_at_start(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(ModelError, match="not valid jinja"):
        with_template(tmp_path, "{% for %}")
    with pytest.raises(ConfigError, match="not valid jinja"):
        load_template(tokenizer, "{% if %}")


BUILTIN = {
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi <b> é<|im_end|>\n"
    "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
    "llama-2": "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi <b> é [/INST] Hello. </s><s>[INST] Bye [/INST]",
    "llama-3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi <b> é<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s>[INST] Be brief.\n\nHi <b> é [/INST] Hello.</s>[INST] Bye [/INST]",
    "openchat": "<s>GPT4 Correct System: Be brief.<|end_of_turn|>GPT4 Correct User: Hi <b> é<|end_of_turn|>"
    "GPT4 Correct Assistant: Hello.<|end_of_turn|>GPT4 Correct User: Bye<|end_of_turn|>GPT4 Correct Assistant:",
    "qwen": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi <b> é<|im_end|>\n"
    "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
    "vicuna_v1.1": "<s>Be brief. USER: Hi <b> é ASSISTANT: Hello.</s> USER: Bye ASSISTANT:",
}


@pytest.mark.parametrize("name", BUILTIN)
def test_builtin_templates(tokenizer: Tokenizer, name: str) -> None:
    assert load_template(tokenizer, name).render(CHAT) == BUILTIN[name]


def test_aliases_of_builtin_templates(tokenizer: Tokenizer) -> None:
    for alias, name in (("llama3", "llama-3"), ("mistral-instruct", "mistral")):
        assert load_template(tokenizer, alias).render(CHAT) == BUILTIN[name]


def test_qwen_writes_tools_calls_and_answers(tokenizer: Tokenizer) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    chat = [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2"},
        {"role": "tool", "content": "3"},
    ]
    assert load_template(tokenizer, "qwen").render(chat, TOOLS) == (
        "<|im_start|>system\nYou are a helpful assistant.\n\n# Tools\n\n"
        "You may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
        + json.dumps(TOOLS[0])
        + "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
        '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
        "</tool_call><|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n2\n</tool_response>\n<tool_response>\n3\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_stop_strings_that_are_tokens_are_matched_by_id(tokenizer: Tokenizer) -> None:
    chatml, llama = load_template(tokenizer, "chatml"), load_template(tokenizer, "llama-3")
    assert (chatml.stop, chatml.stop_token_ids) == ((), (tokenizer.id_of("<|im_end|>"),))
    assert (llama.stop, llama.stop_token_ids) == (("<|eot_id|>",), ())


DESCRIBED = {
    "name": "my_model",
    "system": "<|im_start|>system",
    "user": "<|im_start|>user",
    "assistant": "<|im_start|>assistant",
    "sep_style": "CHATML",
    "sep": "<|im_end|>",
    "stop_str": ["<|im_end|>", "<|im_begin|>"],
}


def test_json_template_of_the_documentation(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "my_model_template.json"
    path.write_text(json.dumps(DESCRIBED))
    template = load_template(tokenizer, str(path))
    assert template.render(CHAT) == BUILTIN["chatml"]
    assert (template.stop, template.stop_token_ids) == (("<|im_begin|>",), (tokenizer.id_of("<|im_end|>"),))


@pytest.mark.parametrize(
    ("style", "text"),
    [
        ("ADD_COLON_SINGLE", "S\nBe brief.|U: Hi <b> é|A: Hello.|U: Bye|A:"),
        ("ADD_COLON_TWO", "S\nBe brief.|U: Hi <b> é|A: Hello.#U: Bye|A:"),
        ("ADD_COLON_SPACE_SINGLE", "S\nBe brief.|U: Hi <b> é|A: Hello.|U: Bye|A: "),
        ("ADD_NEW_LINE_SINGLE", "S\nBe brief.|U\nHi <b> é|A\nHello.|U\nBye|A\n"),
        ("NO_COLON_SINGLE", "S\nBe brief.UHi <b> é|AHello.|UBye|A"),
        ("NO_COLON_TWO", "S\nBe brief.UHi <b> é|AHello.#UBye|A"),
    ],
)
def test_separator_styles(tokenizer: Tokenizer, tmp_path: Path, style: str, text: str) -> None:
    described = {"name": "x", "system": "S", "user": "U", "assistant": "A", "sep_style": style, "sep": "|"}
    extra = {"sep2": "#"} if style.endswith("TWO") else {}
    (tmp_path / "t.json").write_text(json.dumps({**described, **extra, "stop_str": "U:"}))
    assert load_template(tokenizer, str(tmp_path / "t.json")).render(CHAT) == text


def test_a_jinja_file_and_jinja_source(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("{{ messages | length }}")
    assert load_template(tokenizer, str(tmp_path / "t.jinja")).render(CHAT) == "4"
    assert load_template(tokenizer, "{{ messages[0].role }}").render(CHAT) == "system"


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("no-such-name", "no such file, and no template of that name .*chatml"),
        ("missing.jinja", "cannot be read: No such file"),
        ("broken.json", "must hold"),
        ("style.json", "sep_style one of"),
        ("unknown.json", "unknown keys colour"),
    ],
)
def test_templates_that_cannot_be_used(tokenizer: Tokenizer, tmp_path: Path, override: str, sentence: str) -> None:
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "style.json").write_text(json.dumps({**DESCRIBED, "sep_style": "NO_SUCH"}))
    (tmp_path / "unknown.json").write_text(json.dumps({**DESCRIBED, "colour": 1}))
    path = str(tmp_path / override) if "." in override else override
    with pytest.raises(ConfigError, match=sentence) as caught:
        load_template(tokenizer, path)
    assert caught.value.param == "--chat-template"
