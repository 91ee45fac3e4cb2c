"""Random schemas: what can be generated is valid, what is valid is accepted, what is not is not."""

from __future__ import annotations

import json
import random

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sgl.engine.base.errors import SglError
from sgl.engine.grammar.backend import BackendName
from sgl.engine.grammar.keywords import DIALECTS
from sgl.engine.grammar.schema import analyse
from tests.grammar.harness import BACKENDS, accepts, compiled, demo_tokenizer, sample
from tests.grammar.schemas import Maker, written

DEFAULT = {"native": 80, "llguidance": 80, "xgrammar": 30, "outlines": 20}
SLOW = dict.fromkeys(BACKENDS, 2000)
INSTANCES = 6


def check_one(backend: BackendName, seed: int) -> None:
    rng = random.Random(seed)
    maker = Maker(rng, DIALECTS[backend])
    schema = maker.schema()
    source = json.dumps(schema)
    validator = jsonschema.Draft202012Validator(schema)
    try:
        analysis = analyse(source, DIALECTS[backend])
        grammar = compiled(backend, "json_schema", source, demo=True)
    except SglError as error:
        assert error.status == 400
        assert backend != "llguidance" or "Unsatisfiable" in error.message, (schema, error.message)
        return
    for _ in range(3):
        text = sample(backend, grammar, rng)
        if text is not None:
            if backend == "xgrammar" and "\ufffd" in text.decode("utf-8", "replace"):
                continue  # it takes overlong forms for characters; users see replacement characters
            validator.validate(json.loads(text))
            assert analysis.max_bytes is None or len(text) <= analysis.max_bytes
        else:
            assert analysis.max_bytes is None or analysis.max_bytes > 300, "a bounded output ends"
    takes_all_valid = all(
        finding.status == "enforced" or finding.keyword == "properties" for finding in analysis.findings
    )
    for _ in range(INSTANCES):
        value = maker.instance(schema)
        tokens = demo_tokenizer().encode(written(value), add_special_tokens=False)
        taken = accepts(backend, grammar, tokens, demo=True)
        if not validator.is_valid(value):
            assert not taken, (schema, value)
        elif takes_all_valid and backend == "llguidance":
            assert taken, (schema, value)


@pytest.mark.parametrize("backend", BACKENDS)
def test_random_schemas(backend: BackendName) -> None:
    @settings(max_examples=DEFAULT[backend], derandomize=True, deadline=None, database=None)
    @given(st.integers(0, 2**32))
    def run(seed: int) -> None:
        check_one(backend, seed)

    run()


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("backend", BACKENDS)
def test_two_thousand_schemas(backend: BackendName) -> None:
    @settings(
        max_examples=SLOW[backend],
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(st.integers(0, 2**48))
    def run(seed: int) -> None:
        check_one(backend, seed)

    run()
