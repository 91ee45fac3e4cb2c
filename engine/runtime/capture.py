"""Which sizes of steps are captured: settles what the options leave open. Captures nothing."""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile

from sgl.engine.base.config import EngineConfig
from sgl.engine.base.errors import ConfigError
from sgl.engine.runtime.graphs import SEGMENT_ROW, GraphOptions

_ROWS = (1, 2, 3, 4, 6, 8, 12, *range(16, 64, 8), *range(64, 128, 16), *range(128, 512, 32), *range(512, 4097, 128))
_TOKENS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)

_OVERHEAD_BYTES = 256 << 20
"""What graphs take beside the activations in them."""


def graph_options(config: EngineConfig, step_tokens: int) -> GraphOptions | None:
    """What is captured of an engine whose steps have at most so many tokens; None for nothing.

    Raises:
        ConfigError: the sizes given are none.
    """
    kernel = config.kernel
    if kernel.disable_cuda_graph:
        return None
    max_running = config.schedule.max_running_requests or 1
    most = min(kernel.cuda_graph_max_bs, max_running)
    rows = _given(kernel.cuda_graph_bs, max_running) or (*takewhile(lambda count: count < most, _ROWS), most)
    tokens = tuple(count for count in _TOKENS if SEGMENT_ROW <= count <= step_tokens)
    compile_rows = kernel.torch_compile_max_bs if kernel.enable_torch_compile else 0
    return GraphOptions(rows, tokens, not kernel.disable_cuda_graph_padding, compile_rows=compile_rows)


def capture_bytes(
    options: GraphOptions | None,
    activation_bytes: Callable[[int, int], int],
    step_bytes: int = 0,
    graph_bytes: int = 0,
) -> int:
    """Memory to set aside for captures, all of which share what the largest needs.

    Args:
        step_bytes: what attention takes besides, however large a step is.
        graph_bytes: what it keeps for every uniform capture.
    """
    if options is None:
        return 0
    largest = activation_bytes(max(*options.rows, *options.tokens, 1), 0) + step_bytes
    return largest + len(options.rows) * graph_bytes + _OVERHEAD_BYTES


def _given(texts: tuple[str, ...], max_running: int) -> tuple[int, ...]:
    """The sizes that were asked for and that a step may have."""
    flag = "--cuda-graph-bs"
    wrong = [text for text in texts if not text.isdecimal() or not 1 <= int(text) <= _ROWS[-1]]
    if wrong:
        message = f"{flag} takes numbers of requests between 1 and {_ROWS[-1]}, got {wrong[0]!r}."
        raise ConfigError(message, param=flag)
    sizes = sorted({int(text) for text in texts})
    if sizes and sizes[0] > max_running:
        message = f"{flag} {sizes[0]} is more than --max-running-requests {max_running} allows; use smaller sizes."
        raise ConfigError(message, param=flag)
    return tuple(size for size in sizes if size <= max_running)
