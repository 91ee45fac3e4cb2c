"""Parsing of single options and the sentences for what cannot be parsed."""

from __future__ import annotations

import pytest

from sgl.engine.base.config import BY_NAME, GROUPS, OPTIONS, lookup
from sgl.engine.base.errors import ConfigError
from sgl.engine.base.groups import LATER


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("page_size", "32", 32),
        ("page_size", 32, 32),
        ("max_total_tokens", None, None),
        ("schedule_conservativeness", "0.5", 0.5),
        ("schedule_conservativeness", 1, 1.0),
        ("enable_metrics", "TRUE", True),
        ("enable_metrics", "off", False),
        ("schedule_policy", "dfs-weight", "dfs-weight"),
        ("kernels", "norm.rms=reference, linear=onednn", ("norm.rms=reference", "linear=onednn")),
        ("kernels", ["a=b"], ("a=b",)),
        ("api_key", 1234, "1234"),
    ],
)
def test_text_and_typed_values_parse(name: str, text: object, value: object) -> None:
    parsed = BY_NAME[name].parse(text, BY_NAME[name].flags[0])
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("name", "where", "value", "sentence"),
    [
        ("page_size", "--page-size", "x", "--page-size must be an integer, got 'x'."),
        ("page_size", "--page-size", True, "--page-size must be an integer, got True."),
        ("page_size", "SGL_PAGE_SIZE", "0", "SGL_PAGE_SIZE (--page-size) must be between 1 and 1024, got 0."),
        ("max_queued_requests", "--max-queued-requests", "-1", "--max-queued-requests must be at least 0, got -1."),
        ("drain_timeout_s", "--drain-timeout-s", "nan", "--drain-timeout-s must be a number, got 'nan'."),
        ("drain_timeout_s", "--drain-timeout-s", "1e999", "--drain-timeout-s must be a number, got '1e999'."),
        ("log_requests", "log_requests in a.yaml", "maybe",
         "log_requests in a.yaml (--log-requests) must be true or false, got 'maybe'."),
        ("schedule_policy", "--schedule-policy", "fcsf",
         "--schedule-policy must be one of lpm, fcfs, dfs-weight, random, got 'fcsf'. Did you mean 'fcfs'?"),
        ("load_format", "--load-format", "npcache", "--load-format npcache is not supported by this version of sgl."),
        ("kernels", "kernels", [1], "kernels (--kernels) must be a list, got [1]."),
        ("host", "--host", "a\0b", "--host must not contain NUL characters."),
        ("host", "--host", ["a"], "--host must be text, got ['a']."),
    ],
)  # fmt: skip
def test_a_bad_value_is_named_with_what_is_allowed(name: str, where: str, value: object, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        BY_NAME[name].parse(value, where)
    assert caught.value.message == sentence
    assert caught.value.param == BY_NAME[name].flags[0]


def test_every_default_is_a_value_that_the_option_accepts() -> None:
    for option in OPTIONS:
        if option.default is not None:
            assert option.parse(option.default, option.flags[0]) == option.default


def test_names_are_unique_and_flags_are_well_formed() -> None:
    flags = [flag for option in OPTIONS for flag in option.flags]
    variables = [name for option in OPTIONS for name in option.env]
    assert len(set(flags)) == len(flags)
    assert len(set(variables)) == len(variables)
    assert all(flag.startswith("--") and flag == flag.lower() and "_" not in flag for flag in flags)
    assert all(option.declaration.help.endswith(".") for option in OPTIONS)
    assert {option.group for option in OPTIONS} == set(GROUPS)
    assert not LATER & set(BY_NAME)


@pytest.mark.parametrize("name", ["page-size", "page_size", "cache.page_size", "cache.page-size"])
def test_an_option_answers_to_its_names(name: str) -> None:
    assert lookup(name, "--set").key == "cache.page_size"


def test_unknown_and_later_names_are_told_apart() -> None:
    with pytest.raises(ConfigError, match=r"^--set: there is no option called 'page_siz'\. Did you mean 'page_size'\?"):
        lookup("page_siz", "--set")
    with pytest.raises(ConfigError, match=r"^a\.yaml: 'lora-paths' is not supported by this version of sgl\."):
        lookup("lora-paths", "a.yaml")


def test_secrets_are_not_shown() -> None:
    assert BY_NAME["api_key"].show("hunter2") == "********"
    assert BY_NAME["api_key"].show("") == "-"
