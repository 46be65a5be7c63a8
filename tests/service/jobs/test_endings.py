"""Who waits for a job hears of its end at once, before or after it began to wait, and nobody else does."""

import asyncio
import threading

from service.jobs.endings import REMEMBERED, Endings


def test_an_end_told_by_another_thread_is_heard():
    endings = Endings()

    async def hear() -> bool:
        with endings.expected("a") as first, endings.expected("a") as second, endings.expected("b") as other:
            threading.Thread(target=endings.tell, args=("a",)).start()
            await asyncio.gather(first.wait(), second.wait())
            return other.is_set()

    assert not asyncio.run(hear())


def test_an_end_before_the_waiting_began_is_heard_while_it_is_remembered():
    endings = Endings()
    endings.tell("old")
    for i in range(REMEMBERED - 1):
        endings.tell(f"job {i}")

    async def is_heard(job_id: str) -> bool:
        with endings.expected(job_id) as ended:
            return ended.is_set()

    assert asyncio.run(is_heard("old"))
    endings.tell("one more")
    assert not asyncio.run(is_heard("old"))


def test_nobody_is_told_in_a_loop_that_has_closed():
    endings = Endings()

    async def wait_in_vain() -> None:
        with endings.expected("a"):
            pass

    asyncio.run(wait_in_vain())
    endings.tell("a")  # the closed loop would raise
