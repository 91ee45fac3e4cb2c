"""The front's end of an engine: on a thread of this process, or in a process of its own."""

from sgl.engine.client.local import InProcessClient
from sgl.engine.client.process import ProcessClient
from sgl.engine.client.protocol import Client
from sgl.engine.client.wire import ModelInfo

__all__ = ["Client", "InProcessClient", "ModelInfo", "ProcessClient"]
