"""So many at once, so many in line, in order; nothing is lost when one of them fails."""

import asyncio
import json
import threading

import pytest

from slimtts.serving.limits import ServingLimits
from slimtts.serving.numbers import ServingNumbers
from slimtts.serving.refusals import Refusal
from slimtts.serving.speech_desk import SpeechDesk


def test_a_full_line_is_refused_at_once_and_ready_says_so(server_of, scripted, ask):
    speaker = scripted(pieces=6, go=False)

    async def run():
        app = server_of(speaker, concurrent=1, waiting=1).asgi
        calls = [ask(app) for _ in range(3)]
        running = [asyncio.create_task(call.run()) for call in calls[:2]]
        await asyncio.wait_for(calls[0].got_audio.wait(), 5)
        await asyncio.wait_for(calls[2].run(), 1)
        busy = ask(app, path="/ready")
        busy._scope["method"] = "GET"
        await busy.run()
        speaker.go.release(100)
        await asyncio.wait_for(asyncio.gather(*running), 5)
        return calls, busy

    calls, busy = asyncio.run(run())
    assert json.loads(calls[2].content)["error"]["code"] == "too_many_calls"
    assert calls[2].status == 429
    assert busy.status == 503
    assert calls[0].status == 200


@pytest.mark.parametrize("concurrent", [1, 3])
def test_at_most_so_many_generate_at_once_in_the_order_of_arrival(concurrent):
    lock, active, most, order = threading.Lock(), 0, 0, []

    def speak(number):
        def generate(is_wanted):
            nonlocal active, most
            with lock:
                active, order[len(order) :] = active + 1, [number]
                most = max(most, active)
            threading.Event().wait(0.02)
            with lock:
                active -= 1
            yield number

        return generate

    async def run():
        desk = SpeechDesk(ServingLimits(concurrent=concurrent), ServingNumbers())

        async def said(number):
            return [piece async for piece in desk.pieces(speak(number))]

        made = await asyncio.gather(*map(said, range(9)))
        assert desk.has_room
        desk.close()
        return made

    assert asyncio.run(run()) == [[number] for number in range(9)]
    assert most == concurrent
    assert order == list(range(9)) if concurrent == 1 else sorted(order) == list(range(9))


def test_a_generation_that_fails_gives_its_error_and_its_place():
    def broken(is_wanted):
        yield 1
        raise ZeroDivisionError

    async def run():
        desk, got = SpeechDesk(ServingLimits(waiting=0), ServingNumbers()), []
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                async for piece in desk.pieces(broken):
                    got.append(piece)
        assert desk.has_room
        return got

    assert asyncio.run(run()) == [1, 1, 1]


def test_closing_stops_who_still_speaks(scripted):
    speaker = scripted(pieces=1000, go=False)

    async def run():
        desk = SpeechDesk(ServingLimits(waiting=0), ServingNumbers())
        pieces = desk.pieces(lambda is_wanted: speaker.stream("a", is_wanted=is_wanted))
        await anext(pieces)
        with pytest.raises(Refusal, match="1 calls at once"):
            await anext(desk.pieces(lambda _: iter(())))
        await asyncio.to_thread(desk.close)
        assert [piece async for piece in pieces] == []

    asyncio.run(asyncio.wait_for(run(), 10))
    assert speaker.made == 1
