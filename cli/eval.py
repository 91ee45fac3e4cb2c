"""``sgl eval``: the tasks by name; also spelled ``sgl eval demo-SKILL`` and ``sgl eval --lm-eval TASK``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sgl.cli.main import CONTEXT, Commands, Subcommand

COMMANDS: Mapping[str, Subcommand] = {
    "demo": Subcommand("sgl.cli.eval_demo", "The demo model's skills, as in its model card; demo-SKILL is one."),
    "gsm8k": Subcommand("sgl.cli.eval_gsm8k", "Sums in words, few-shot."),
    "mmlu": Subcommand("sgl.cli.eval_mmlu", "Questions of 57 subjects with four answers each, few-shot."),
    "perplexity": Subcommand("sgl.cli.eval_perplexity", "How well a text is foreseen."),
    "json-schema": Subcommand("sgl.cli.eval_json_schema", "Whether structured output is valid."),
    "tool-calls": Subcommand("sgl.cli.eval_tool_calls", "Whether the right functions are called; a file of cases."),
    "needle": Subcommand("sgl.cli.eval_needle", "One sentence to be found in texts of several lengths."),
    "kl": Subcommand("sgl.cli.eval_kl", "How far a model's distributions are from a reference checkpoint's."),
    "lm-eval": Subcommand("sgl.cli.eval_lm_eval", "Any task of EleutherAI's lm-eval library."),
    "compare": Subcommand("sgl.cli.eval_compare", "Two runs of one task: the difference, and the items that flipped."),
}

_DEMO, _LM_EVAL = "demo-", "--lm-eval"


class Tasks(Commands):
    """Also knows tasks by the names that people say."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, respelled(args))


def respelled(args: list[str]) -> list[str]:
    """The command line with a subcommand for ``demo-SKILL``, and for ``--lm-eval TASK`` wherever it stands."""
    if args and args[0].startswith(_DEMO):
        return ["demo", "--skills", args[0].removeprefix(_DEMO), *args[1:]]
    for place, word in enumerate(args):
        flag, equals, value = word.partition("=")
        if flag == _LM_EVAL:
            named = [value] if equals else args[place + 1 : place + 2]
            return ["lm-eval", *named, *args[:place], *args[place + 1 + (not equals) :]]
    return args


command = Tasks(
    name="eval", help="Measure whether a model's answers are right.", no_args_is_help=True, context_settings=CONTEXT
)
command.table = COMMANDS
