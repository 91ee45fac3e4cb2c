"""`/v1/models`."""

from __future__ import annotations

from tests.server.conftest import Serve
from tests.server.fake import CONTEXT_LEN


def test_the_one_model(serve: Serve) -> None:
    served = serve(model_served_model_name="org/echo")
    listing = served.get("/v1/models").json()
    [card] = listing["data"]
    assert listing["object"] == "list"
    assert card.pop("created") > 1.7e9
    assert card == {
        "id": "org/echo",
        "object": "model",
        "owned_by": "sglang",
        "root": "org/echo",
        "max_model_len": CONTEXT_LEN,
    }
    assert served.get("/v1/models/org/echo").json()["id"] == "org/echo"
    missing = served.get("/v1/models/other")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"
