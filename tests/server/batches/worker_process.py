"""Works off every batch of a store, until it is killed: ``... worker_process DIRECTORY [MOST_ANSWERS]``.

Lines take random times up to a few milliseconds; after so many it only waits, which a file ``enough`` tells. Every
answer tells which run gave it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import sys
from pathlib import Path

from sgl.server.batches.dispatch import Reply
from sgl.server.batches.store import Store
from tests.server.batches.inputs import running

_MOST = int(sys.argv[2]) if len(sys.argv) > 2 else sys.maxsize
_numbers = itertools.count()


async def answer(endpoint: str, body: bytes) -> Reply:
    if next(_numbers) >= _MOST:
        (Path(sys.argv[1]) / "enough").touch()
        await asyncio.Event().wait()
    await asyncio.sleep(random.random() * 0.004)
    said = {"said": json.loads(body)["messages"][0]["content"], "pid": os.getpid()}
    return Reply(400 if random.random() < 0.1 else 200, "x", json.dumps(said).encode())


async def work(root: Path) -> None:
    async with running(root, answer, max_in_flight=16) as (thread, runner):
        print("going", flush=True)
        batches = await thread.do(Store.open_batches)
        if batches:
            await asyncio.wait([runner.start(batch) for batch in batches])


if __name__ == "__main__":
    asyncio.run(work(Path(sys.argv[1])))
