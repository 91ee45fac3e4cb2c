"""Abbreviated flags, as scripts written for SGLang use them."""

from __future__ import annotations

import pytest

from sgl.cli.options import expand, with_model
from sgl.engine.base.config import OPTIONS, Given
from sgl.engine.base.errors import ConfigError

TAKES_VALUE = {flag: option.kind is not bool for option in OPTIONS for flag in option.flags}
NAMES: dict[str, str | None] = {flag: option.name for option in OPTIONS for flag in option.flags}


def expanded(line: str) -> str:
    return " ".join(expand(line.split(), TAKES_VALUE, NAMES))


@pytest.mark.parametrize(
    ("line", "full"),
    [
        ("--model m --tp 1", "--model m --tp 1"),
        ("--mem-fraction 0.6", "--mem-fraction-static 0.6"),
        ("--mem-frac=0.8", "--mem-fraction-static=0.8"),
        ("--tp-size=8", "--tp-size=8"),
        ("--tensor 1", "--tensor-parallel-size 1"),
        ("--chat-template=X --port=30000", "--chat-template=X --port=30000"),
        ("--dp-size 1 --tp 1 --load-balance-method=round_robin", "--tp 1"),
        ("--enable-m m.txt", "--enable-metrics m.txt"),
        ("--api-key --tp", "--api-key --tp"),
        ("--chunked -1", "--chunked-prefill-size -1"),
        ("-- --tensor", "-- --tensor"),
        ("-h", "-h"),
        ("--host", "--host"),
    ],
)
def test_an_unambiguous_beginning_is_enough(line: str, full: str) -> None:
    assert expanded(line) == full


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--max-r 1 --max-p 2 --max-q 3 --max- 4", "--max- is ambiguous: --max-body-bytes, --max-file-bytes"),
        ("--speculative-algo EAGLE", "--speculative-algo is not supported by this version of sgl."),
        ("--speculative-draft x", "--speculative-draft is not supported by this version of sgl."),
        ("--spec x", "--spec is not supported by this version of sgl."),
        ("--dp 2", "--dp is not supported by this version of sgl."),
        ("--nccl-init-addr x", "--nccl-init-addr is not supported by this version of sgl."),
        ("--ds-channel-config-path=x", "--ds-channel-config-path is not supported by this version of sgl."),
        ("--page-siez 3", "There is no option --page-siez. Did you mean '--page-size'?"),
    ],
)
def test_what_is_meant_by_others_is_said(line: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        expanded(line)
    assert caught.value.message.startswith(sentence)


def test_the_positional_model_and_the_flag_must_not_differ() -> None:
    flag = {"model.model_path": Given("a", "flag", "--model-path")}
    assert with_model(flag, "a")["model.model_path"].value == "a"
    assert with_model({}, "b")["model.model_path"].where == "MODEL"
    from_env = {"model.model_path": Given("c", "env", "SGL_MODEL_PATH")}
    assert with_model(from_env, "b")["model.model_path"].note == "overrides SGL_MODEL_PATH"
    with pytest.raises(ConfigError, match="Two models are named: b and --model-path a"):
        with_model(flag, "b")
