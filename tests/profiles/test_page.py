"""The pages: well-formed, complete, and without anything from elsewhere."""

from __future__ import annotations

from pathlib import Path

from sgl.engine.api.explanation import Alone, Delay, Explanation, Piece
from sgl.profiles.analysis import analyse
from sgl.profiles.page import difference_page, page
from sgl.profiles.trace import read
from sgl.profiles.waterfall import page as waterfall
from sgl.profiles.waterfall import svg_file
from sgl.profiles.work import Ceilings
from tests.bench.test_report import Tree
from tests.profiles.traces import event, step, write


def check(content: str) -> Tree:
    """No script, and no address of anything but a name space."""
    tree = Tree(content)
    assert not {tag for tag, _ in tree.tags} & {"script", "link", "img", "iframe"}
    assert "http" not in content.replace("http://www.w3.org/2000/svg", "") and "url(" not in content
    return tree


def test_the_page_of_a_profile(tmp_path: Path) -> None:
    events = [*step(0.0), *step(150.0), event("op", "aten::<b>evil</b>", 77, 1)]
    found = analyse(read(write(tmp_path / "a.json", events, 2)), Ceilings(1e9, {"bf16": 1e12}))
    tree = check(page(found, "My <profile>"))
    text = "".join(tree.text)
    for told in ("My <profile>", "Largest opportunities", "Phases", "Kernels", "Host code", "layer 1", "evil"):
        assert told in text
    assert len(tree.of("svg")) == 3 and not tree.of("b")
    difference = "".join(check(difference_page(found, found, "Two")).text)
    assert "A us/step" in difference and "qkv" in difference


def explanation() -> Explanation:
    pieces = [
        Piece(part="parse", begin_ms=0.0, ms=1.0),
        Piece(part="queue", begin_ms=1.0, ms=9.0, cause="chunk of <b> (512 tokens), 8 ms"),
        Piece(part="decode", begin_ms=10.0, ms=30.0, first_step=4, num_steps=3, others=1, tokens=3),
    ]
    return Explanation(
        rid="<r>",
        state="stop",
        received=0.0,
        total_ms=40.0,
        first_token_ms=20.0,
        prompt_tokens=5,
        cached_tokens=0,
        completion_tokens=3,
        num_steps=3,
        parts={"parse": 1.0, "queue": 9.0, "decode": 30.0},
        schedule_ms=1.0,
        sampling_ms=1.0,
        detokenize_ms=0.1,
        pieces=pieces,
        delays=[Delay(9.0, "queue: chunk of <b> (512 tokens), 8 ms")],
        alone=Alone(total_ms=25.0, parts={"parse": 1.0, "decode": 24.0}, step_ms=8.0, token_us=10.0, num_steps=50),
    )


def test_the_waterfall_of_a_request() -> None:
    tree = check(waterfall([explanation()], "Request <r>"))
    text = "".join(tree.text)
    for told in ("queue", "chunk of <b> (512 tokens), 8 ms", "Alone it would have taken about 25 ms", "steps 4 to 6"):
        assert told in text
    bars = [float(attrs["width"] or 0) for attrs in tree.of("rect", "bar")]
    assert [round(bar / sum(bars), 3) for bar in bars] == [0.025, 0.225, 0.75]


def test_the_waterfall_as_a_file_of_its_own() -> None:
    content = svg_file(explanation())
    assert content.startswith("<svg ") and 'xmlns="http://www.w3.org/2000/svg"' in content
    Tree(content)
