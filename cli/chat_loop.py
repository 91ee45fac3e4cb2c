"""Runs a chat: questions in, answers streamed to a renderer, Ctrl-C stopping the answer and not the program."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass

from sgl.cli.chat_backend import Backend, ContextFullError, Piece
from sgl.cli.chat_commands import AnswerStats, Desk, execute
from sgl.cli.chat_input import Input, quiet_keyboard
from sgl.cli.chat_render import Renderer, Stopwatch
from sgl.engine.base.errors import SglError

_TICK_S = 0.08
_CUT_OFF = "(The answer is cut off: max_tokens or the end of the context was reached.)"


@dataclass
class Chat:
    """Everything that a chat needs, put together."""

    desk: Desk
    backend: Backend
    renderer: Renderer


async def converse(chat: Chat, prompt: Input) -> None:
    """Questions and answers until the user leaves."""
    while True:
        try:
            line = (await prompt.read()).strip()
            question: str | None = line.removeprefix("/") if line.startswith("//") else line
            if line.startswith("/") and not line.startswith("//"):
                question = execute(chat.desk, line)
            if question:
                await ask(chat, question)
            chat.desk.console.print()
        except EOFError:
            return
        except SglError as error:
            chat.desk.complain(f"{error.message}\n")


async def ask(chat: Chat, question: str) -> None:
    """Asks, shows the answer and keeps both; a question without any answer is forgotten.

    Raises:
        SglError: there is no answer.
    """
    session = chat.desk.session
    session.ask(question)
    try:
        with quiet_keyboard():
            answer = await answer_once(chat)
    except BaseException:
        session.take_back()
        raise
    session.answer(answer.text)
    chat.desk.stats.append(answer.stats())
    notes = {"length": _CUT_OFF, "stopped": "(stopped)"}
    if answer.trouble or answer.finish in notes:
        chat.desk.note(answer.trouble or notes[answer.finish])


@dataclass
class Answer:
    """An answer as far as it has come; ``trouble`` says why it ends early."""

    watch: Stopwatch
    text: str = ""
    finish: str = "stop"
    trouble: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None

    def add(self, piece: Piece) -> None:
        if piece.text:
            self.watch.lap()
        self.text += piece.text
        self.finish = piece.finish or self.finish
        for name in ("prompt_tokens", "completion_tokens", "cached_tokens"):
            if getattr(piece, name) is not None:
                setattr(self, name, getattr(piece, name))

    def stats(self) -> AnswerStats:
        return AnswerStats(
            finish=self.finish,
            ttft_s=self.watch.first_s,
            duration_s=self.watch.last_s,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            cached_tokens=self.cached_tokens,
        )


async def answer_once(chat: Chat) -> Answer:
    """Streams the answer to what was asked last; leaves out the oldest turns if the context is full.

    Raises:
        SglError: there is no answer, not even the beginning of one.
    """
    session, full = chat.desk.session, False
    while True:
        answer = Answer(Stopwatch())
        try:
            await _stream(chat, answer)
            return answer
        except ContextFullError as error:
            if not session.skip_oldest():
                raise
            if not full:
                chat.desk.note(f"({error.message.rstrip('.')}: the oldest turns are left out.)")
            full = True
        except SglError as error:
            if not answer.text:
                raise
            answer.finish, answer.trouble = "broken off", f"({error.message})"
            return answer


async def _stream(chat: Chat, answer: Answer) -> None:
    """Fills ``answer``; Ctrl-C ends it early and quietly."""
    chat.renderer.start()
    ticker = asyncio.create_task(_tick(chat.renderer))
    reader = asyncio.create_task(_read(chat, answer))
    try:
        with _interrupting(reader):
            await reader
    except asyncio.CancelledError:
        if not reader.cancelled():
            raise
        answer.finish = "stopped"
    finally:
        reader.cancel()
        ticker.cancel()
        chat.renderer.finish()


async def _read(chat: Chat, answer: Answer) -> None:
    session = chat.desk.session
    async with contextlib.aclosing(chat.backend.stream(session.to_send(), session.params)) as pieces:
        async for piece in pieces:
            answer.add(piece)
            chat.renderer.feed(piece.text)


async def _tick(renderer: Renderer) -> None:
    """Repaints a dozen times a second, but at most a tenth of the time: the model may run in this process."""
    took_s = 0.0
    while True:
        await asyncio.sleep(max(_TICK_S, 9 * took_s))
        started_s = time.perf_counter()
        renderer.tick()
        took_s = time.perf_counter() - started_s


@contextlib.contextmanager
def _interrupting(task: asyncio.Task[None]) -> Iterator[None]:
    """Ctrl-C cancels the task instead of the program."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, task.cancel)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
