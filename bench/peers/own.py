"""This engine in a process of its own, as `worker` runs the peers: two configurations do not share threads or memory.

{"load": "sgl", "config": EngineConfig as JSON, "grammar": [kind, source] or null}
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import sgl
from sgl.bench.engines import SglEngine
from sgl.bench.peers.worker import Json, Prompts, own_output, serve
from sgl.engine.base.config import EngineConfig
from sgl.engine.base.types import Grammar


class Own:
    """A `worker.Peer`."""

    def __init__(self, request: Json) -> None:
        grammar = request.get("grammar")
        config = EngineConfig.from_json(request["config"].encode())
        self._own = SglEngine(config, grammar=Grammar(*grammar) if grammar else None)
        info = self._own.engine.info
        self.facts: dict[str, Any] = {
            "version": f"sgl {sgl.__version__}",
            "weight_bytes": info.cost.weight_bytes,
            "vocab_size": info.vocab_size,
        }

    def run(self, prompts: Prompts, output_lens: Sequence[int]) -> tuple[float, list[list[float]]]:
        timing = self._own.run_each(prompts, output_lens)
        return timing.start_s, timing.tokens


if __name__ == "__main__":
    serve(Own, sys.stdin, own_output())
