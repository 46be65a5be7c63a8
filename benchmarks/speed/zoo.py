"""The zoo: networks trained per second by the zoo builder's workers, against a plain PyTorch loop over networks."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache

import torch
import torch.nn.functional as F

from benchmarks.speed.measure import Ratio, median_ratio, medians, time_in_turn
from model_zoo.architectures import build_target
from model_zoo.zoo.group_training import Job, Rows, train_group

ARCH, NUM_CLASSES, NUM_NETWORKS, NUM_STEPS, BATCH_SIZE, AIM = "cnn-tiny", 10, 8, 60, 32, 2.0
NUM_EXAMPLES = 2000
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 1e-2


def measure_zoo() -> list[Ratio]:
    """Both train the same number of networks on the same images for the same steps, on all cores."""
    num_workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ProcessPoolExecutor(num_workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        shares = [list(range(NUM_NETWORKS))[i::num_workers] for i in range(num_workers)]
        sides = {
            "builder": lambda: list(pool.map(train_by_builder, shares)),
            "plain loop": lambda: _train_all(num_workers),
            "plain loop, one thread": lambda: _train_all(1),
        }
        seconds = time_in_turn(sides, num_rounds=3)
    found = medians(seconds)
    plain = min((side for side in sides if side != "builder"), key=found.__getitem__)
    value = 1 / median_ratio(seconds, "builder", plain)
    label = f"zoo: {ARCH} networks per second / the faster plain one-by-one loop, {num_workers} cores"
    return [Ratio(label, value, f">= {AIM:g}", value >= AIM, found)]


def train_by_builder(seeds: list[int]) -> int:
    """Train a worker's share like the zoo builder, without reading data or writing files; returns its size."""
    torch.set_num_threads(1)
    x, y = _examples()
    rows = Rows(pool=x, rows=torch.arange(len(x)), labels=y)
    jobs = [
        Job(train=rows, test=rows, seed=s, learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY, augment=False)
        for s in seeds
    ]
    found = train_group(
        build_target(ARCH, num_classes=NUM_CLASSES),
        jobs,
        batch_size=BATCH_SIZE,
        checkpoint_steps=[NUM_STEPS],
        eval_examples=100,
        device=torch.device("cpu"),
    )
    return len(list(found))


def _train_all(num_threads: int) -> list[float]:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        return [train_plainly(seed) for seed in range(NUM_NETWORKS)]
    finally:
        torch.set_num_threads(before)


def train_plainly(seed: int) -> float:
    """Train one network like a PyTorch tutorial; returns its accuracy on a hundred examples."""
    x, y = _examples()
    target = build_target(ARCH, num_classes=NUM_CLASSES)
    module = target.load(target.init_state(seed)).train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    rng = torch.Generator().manual_seed(seed)
    order = torch.cat([torch.randperm(len(x), generator=rng) for _ in range(-(-NUM_STEPS * BATCH_SIZE // len(x)))])
    for rows in order.split(BATCH_SIZE)[:NUM_STEPS]:
        optimizer.zero_grad()
        F.cross_entropy(module(x[rows]), y[rows]).backward()
        optimizer.step()
    with torch.no_grad():
        return float((module.eval()(x[:100]).argmax(1) == y[:100]).float().mean())


@lru_cache(maxsize=1)
def _examples() -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(NUM_EXAMPLES, 1, 28, 28, generator=rng)
    return images, torch.randint(NUM_CLASSES, (NUM_EXAMPLES,), generator=rng)
