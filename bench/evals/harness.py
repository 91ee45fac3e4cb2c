"""EleutherAI's lm-eval over a model under test: translates requests and results, and knows no task.

Imports lm_eval, which takes seconds and may not be installed: import this module inside a function.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lm_eval
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager

from sgl.bench.evals.asks import Ask, Json, Model, Passage, Reply, Scores
from sgl.bench.evals.estimates import share
from sgl.bench.evals.items import Item, Judgement, Record
from sgl.bench.evals.journal import Journal
from sgl.bench.evals.running import Run, evaluate, prepare
from sgl.engine.base.errors import ConfigError, SglError

VERSION = lm_eval.__version__
MAX_GEN_TOKENS = 256
REMOTE_LEN = 2048
"""Context of a server that does not say how much it has: what lm-eval's own clients assume."""

ACCURACIES = ("acc", "exact_match", "acc_norm", "em", "f1")
"""What a task's accuracy is called, the first that it has."""

Encoded = tuple[Any, list[int], list[int]]
Watch = Callable[[Run], Callable[[Record], None]]
"""Told of a batch of requests before it begins; returns what is called with every answer."""


@dataclass(frozen=True)
class Plan:
    """
    Args:
        tasks: by lm-eval's names.
        num_fewshot: None for what the task says.
        limit: items of each task; None for all.
        include_path: folder with further task files.
        chat: whether prompts are conversations in the model's template.
        max_len: of prompt and answer in tokens; None for what the model has.
    """

    tasks: tuple[str, ...]
    num_fewshot: int | None = None
    limit: int | None = None
    include_path: str = ""
    chat: bool = False
    system_prompt: str = ""
    max_len: int | None = None
    seed: int = 1234

    @property
    def name(self) -> str:
        return f"lm-eval-{'-'.join(self.tasks)}"

    def settings(self) -> Json:
        """What answers depend on; which of the items are asked is not part of it."""
        return {
            "num_fewshot": self.num_fewshot,
            "chat": self.chat or bool(self.system_prompt),
            "system_prompt": self.system_prompt,
            "max_len": self.max_len,
            "seed": self.seed,
            "lm_eval": VERSION,
        }


class Requests:
    """Requests of one kind as a task, so that they are asked, retried and kept like any other."""

    data = ""
    seed = 0
    settings: Mapping[str, Any] = {}

    def __init__(self, kind: str, asks: Sequence[Ask | Passage]) -> None:
        self.name = kind
        self._asks = asks

    def items(self, model: Model) -> list[Item]:
        return [Item(f"{self.name}/{number}", ask) for number, ask in enumerate(self._asks)]

    def judge(self, item: Item, found: Reply | Scores) -> Judgement:
        if isinstance(found, Reply):
            return Judgement(None)
        figures = {"logprob": math.fsum(found.logprobs), "is_greedy": float(all(found.is_greedy))}
        return Judgement(None, figures=figures)

    def figures(self, records: Sequence[Record]) -> Json:
        return {}


class Subject(TemplateLM):  # type: ignore[misc]
    """What lm-eval takes for a model.

    Args:
        max_len: see `Plan`.
    """

    def __init__(
        self, model: Model, parallel: int, journal: Journal | None, watch: Watch, max_len: int | None = None
    ) -> None:
        super().__init__()
        self._model = model
        self._parallel = parallel
        self._journal = journal
        self._watch = watch
        self._max_len = max_len or model.context_len or REMOTE_LEN
        self._num_batches = 0
        self.num_cut = 0
        self.num_truncated = 0

    @property
    def max_length(self) -> int:
        """Of what is scored: as lm-eval's clients do, one token less than the context."""
        return self._max_len - 1

    @property
    def eot_token_id(self) -> int:
        ids = self._model.tokenizer.eos_ids
        if not ids:
            raise ConfigError("The model's tokenizer has no end token, which lm-eval needs.")
        return ids[0]

    @property
    def prefix_token_id(self) -> int:
        bos = self._model.tokenizer.bos_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        return self._model.identity.name.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str:
        """For the record."""
        return "\n".join(self._model.template.sources.values()) if chat_template else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self._model.template.render(chat_history, add_generation_prompt=add_generation_prompt)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return self._model.tokenizer.encode(string, add_special_tokens=bool(add_special_tokens))

    def _loglikelihood_tokens(self, requests: list[Encoded], **_: Any) -> list[tuple[float, bool]]:
        passages = []
        for _key, context, continuation in requests:
            ids = (*context, *continuation)
            kept = ids[-self.max_length :]
            self.num_truncated += len(kept) < len(ids)
            passages.append(Passage(kept, max(len(kept) - len(continuation), 1)))
        records = self._ask("loglikelihood", passages)
        return [(record.figures["logprob"], bool(record.figures["is_greedy"])) for record in records]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        windows: list[tuple[int, Encoded]] = []
        for number, request in enumerate(requests):
            rolling = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length - 1,
                context_len=1,
            )
            windows += [(number, (None, *utils.make_disjoint_window(window))) for window in rolling]
        totals = [0.0] * len(requests)
        found = self._loglikelihood_tokens([encoded for _, encoded in windows])
        for (number, _), (logprob, _) in zip(windows, found, strict=True):
            totals[number] += logprob
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        records = self._ask("generate", [self._generation(*request.args) for request in requests])
        self.num_cut += sum(record.finish == "length" for record in records)
        return [record.text for record in records]

    def _generation(self, context: str, options: Mapping[str, Any]) -> Ask:
        until = options.get("until") or ()
        most = int(options.get("max_gen_toks", options.get("max_tokens", MAX_GEN_TOKENS)))
        temperature = float(options.get("temperature") or 0.0) if options.get("do_sample", True) else 0.0
        unknown = options.keys() - {"until", "max_gen_toks", "max_tokens", "do_sample", "temperature"}
        if unknown and temperature:
            raise ConfigError(f"The task samples with {sorted(unknown)[0]}, which `sgl eval` cannot pass on.")
        ids = tuple(self.tok_encode(context))
        kept = ids[-max(self.max_length - most, 1) :]
        self.num_truncated += len(kept) < len(ids)
        stop = (until,) if isinstance(until, str) else tuple(until)
        return Ask(prompt=kept, max_tokens=most, stop=tuple(filter(None, stop)), temperature=temperature)

    def _ask(self, kind: str, asks: Sequence[Ask | Passage]) -> list[Record]:
        """The answers to all; lm-eval knows no missing ones."""
        task = Requests(f"{kind}-{self._num_batches}", asks)
        self._num_batches += 1
        run = prepare(task, self._model, self._journal)
        on_record = self._watch(run)
        evaluate(task, self._model, parallel=self._parallel, journal=self._journal, on_record=on_record, run=run)
        if run.interrupted:
            raise KeyboardInterrupt
        if run.failed:
            message = f"{len(run.failed)} of {len(run.items)} requests failed; the first: {run.failed[0].error}"
            raise SglError(f"{message} The same command asks only those again.", status=503)
        return run.records


def run(
    plan: Plan, model: Model, *, parallel: int, journal: Journal | None, watch: Watch
) -> tuple[dict[str, Json], dict[str, list[Json]]]:
    """Runs lm-eval's tasks.

    Returns:
        Results and samples by task. A result has all ``metrics``, and ``accuracy`` where the task has such a one: with
        Wilson's interval if every item is right or wrong.

    Raises:
        ConfigError: there is no such task, or it cannot be asked.
        SglError: requests failed.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # its notes on defaults of tasks are many
    manager = TaskManager(include_path=plan.include_path or None)
    unknown = [task for task in plan.tasks if not manager.match_tasks([task])]
    if unknown:
        raise ConfigError(f"lm-eval {VERSION} has no task '{unknown[0]}'; --include-path adds folders.", param="TASK")
    subject = Subject(model, parallel, journal, watch, plan.max_len)
    found = lm_eval.simple_evaluate(
        model=subject,
        tasks=list(plan.tasks),
        num_fewshot=plan.num_fewshot,
        limit=plan.limit,
        system_instruction=plan.system_prompt or None,
        apply_chat_template=plan.chat or bool(plan.system_prompt),
        task_manager=manager,
        random_seed=plan.seed,
        numpy_random_seed=plan.seed,
        torch_random_seed=plan.seed,
        fewshot_random_seed=plan.seed,
        bootstrap_iters=0,
    )
    counts = {"num_cut": subject.num_cut, "num_truncated": subject.num_truncated}
    samples: dict[str, list[Json]] = found["samples"]
    results = {
        name: {**_result(metrics, samples.get(name, ())), **counts, "num_items": _num_items(found, name)}
        for name, metrics in found["results"].items()
    }
    return results, samples


def _num_items(found: Mapping[str, Any], name: str) -> int:
    """Of a task; 0 for a group of tasks."""
    return int(found["n-samples"].get(name, {}).get("effective", 0))


def _result(metrics: Mapping[str, Any], samples: Sequence[Json]) -> Json:
    values = {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
    key = next((key for name in ACCURACIES for key in values if key.partition(",")[0] == name), None)
    if key is None:
        return {"metrics": values}
    metric, _, form = key.partition(",")
    found = {"accuracy": values[key], "accuracy_metric": key, "metrics": values}
    judged: list[Any] = [sample.get(metric) for sample in samples if sample.get("filter") == form]
    if judged and all(value in (0, 1) for value in judged):
        num_right = sum(map(int, judged))
        interval = share(num_right, len(judged))
        found |= {"low": interval.low, "high": interval.high, "num_right": num_right}
    return found
