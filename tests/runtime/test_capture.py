"""Which sizes are captured, by the options that say so."""

from __future__ import annotations

import pytest

from sgl.engine.base.config import EngineConfig
from sgl.engine.base.errors import ConfigError
from sgl.engine.runtime.capture import capture_bytes, graph_options
from sgl.engine.runtime.graphs import SEGMENT_ROW, GraphOptions
from tests.base.machines import GPU, LAPTOP, resolved


def options_for(step_tokens: int = 8192, **flags: object) -> GraphOptions | None:
    return graph_options(resolved(GPU, **flags), step_tokens)


def test_by_default_sizes_lie_dense_where_steps_are_small() -> None:
    options = options_for()
    assert options is not None and options.is_padded and options.compile_rows == 0
    assert options.rows[:5] == (1, 2, 3, 4, 6) and options.rows[-1] == 256
    assert list(options.rows) == sorted(set(options.rows))
    assert all(larger <= 1.5 * smaller for smaller, larger in zip(options.rows[3:], options.rows[4:], strict=False))
    assert options.tokens[0] == SEGMENT_ROW and options.tokens[-1] == 1024
    assert all(count % SEGMENT_ROW == 0 for count in options.tokens)


def test_no_more_than_can_run() -> None:
    options = options_for(step_tokens=100, schedule__max_running_requests=5)
    assert options is not None
    assert (options.rows, options.tokens[-1]) == ((1, 2, 3, 4, 5), 96)


def test_what_was_asked_for() -> None:
    assert options_for(kernel__disable_cuda_graph=True) is None
    some = options_for(kernel__cuda_graph_max_bs=10, kernel__disable_cuda_graph_padding=True)
    assert some is not None and some.rows == (1, 2, 3, 4, 6, 8, 10) and not some.is_padded
    own = options_for(kernel__cuda_graph_bs="7,1,7,999", kernel__enable_torch_compile=True)
    assert own is not None and own.rows == (1, 7) and own.compile_rows == 32


@pytest.mark.parametrize(
    ("given", "message"),
    [("1,x", "between 1 and .*, got 'x'"), ("0", "got '0'"), ("300", "300 is more than --max-running-requests 256")],
)
def test_sizes_that_are_none(given: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"--cuda-graph-bs.*{message}"):
        options_for(kernel__cuda_graph_bs=given)


@pytest.mark.parametrize("machine", [LAPTOP, GPU])
def test_compiling_needs_captures(machine: object) -> None:
    flags = {"kernel__enable_torch_compile": True, "kernel__disable_cuda_graph": machine is GPU}
    with pytest.raises(ConfigError, match=r"--enable-torch-compile .* leave it out"):
        resolved(machine, **flags)  # type: ignore[arg-type]


def test_memory_is_set_aside_for_the_largest() -> None:
    def activation_bytes(num_tokens: int, num_logits: int) -> int:
        assert num_logits == 0
        return num_tokens

    assert capture_bytes(None, activation_bytes) == 0
    small, large = (capture_bytes(GraphOptions((1, 64), tokens), activation_bytes) for tokens in ((), (16, 512)))
    assert large - small == 512 - 64


def test_a_configuration_survives_its_way_to_the_engine() -> None:
    config = resolved(GPU, kernel__cuda_graph_bs="1,2")
    assert graph_options(EngineConfig.from_json(config.to_json()), 64) == graph_options(config, 64)
