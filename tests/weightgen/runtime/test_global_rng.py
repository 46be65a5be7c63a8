import threading

import torch

from weightgen.runtime.global_rng import borrowed_rng


def test_the_generator_is_handed_back_as_it_was():
    before = torch.get_rng_state()
    with borrowed_rng(seed=3):
        drawn = torch.rand(4)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(drawn, torch.rand(4, generator=torch.Generator().manual_seed(3)))


def test_a_borrower_may_borrow_again():
    with borrowed_rng(seed=3):
        first = torch.rand(1)
        with borrowed_rng(seed=4):
            torch.rand(7)
        drawn = torch.cat([first, torch.rand(1)])
    assert torch.equal(drawn, torch.rand(2, generator=torch.Generator().manual_seed(3)))


def test_two_threads_draw_each_from_its_own_seed():
    drawn: dict[int, torch.Tensor] = {}
    has_begun = {1: threading.Event(), 2: threading.Event()}

    def draw(seed: int) -> None:
        with borrowed_rng(seed=seed):
            first = torch.rand(1)
            has_begun[seed].set()
            has_begun[3 - seed].wait(0.2)  # the other one comes in between, if it can
            drawn[seed] = torch.cat([first, torch.rand(1)])

    threads = [threading.Thread(target=draw, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in (1, 2):
        assert torch.equal(drawn[seed], torch.rand(2, generator=torch.Generator().manual_seed(seed)))
