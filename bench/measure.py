"""One measurement in a separate process: `python -m bench.measure SPEC`. `bench.run` makes SPEC, in JSON.

SPEC has peer, work, workers, method, seconds, warm_s, `open` (options for the peer), and options of the method. The last
printed line is `RESULT {...}`. Every batch is verified during the measurement; a WrongPayloadError ends the process with the
exit code WRONG.

Methods
    rate    samples/s in the steady state, and CPU time of the trainer's thread a batch
    first   seconds from making the loader to its first batch, without the import of its framework, and with it
    steps   a trainer whose step takes `step` times the time of loading a batch: time waited, and wall time over the ideal time,
            after the first batches
    epoch   samples/s over one epoch of files that are not in the page cache; each read takes `delay_ms`, if given
    memory  the trainer takes batches, then sleeps until all batches ahead are filled; bench.run measures the memory
    scaling samples/s of samples that sleep, for each number of workers in `counts`, one after the other
    proof   one epoch without timing: checks that every sample comes once; and, of the recipe, that its parts are as they should
    train   a real training (bench.train)
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from bench import data
from bench.peers import PEERS, Peer, Stream
from bench.work import Epoch, Photos, Sleeps, Work, WrongPayloadError, make_work

WRONG = 42  # exit code
SETTLING = 2  # the first batches a worker, before a trainer with a step is measured
N_SLEEPS = 100


class Trainer:
    """Takes batches from a stream and verifies them. `cpu_s` and `wait_s` are spent in taking and releasing batches."""

    def __init__(self, work: Work, stream: Stream) -> None:
        if work.n_samples % work.batch_size:
            raise ValueError(f"{work.n_samples} samples are not whole batches of {work.batch_size}")
        self._work, self._stream = work, stream
        self._batch: Any = None
        self._epoch, self._left = Epoch(work), work.n_samples // work.batch_size
        self.reset()

    def reset(self) -> None:
        """Set all counts to 0."""
        self.n_batches, self.cpu_s, self.wait_s, self.begin_s = 0, 0.0, 0.0, time.perf_counter()

    def take(self) -> tuple[np.ndarray, np.ndarray]:
        """Take one batch, after releasing the previous one. Returns its index and payload, which are valid until the next."""
        wall_s, cpu_s = time.perf_counter(), time.thread_time()
        self._batch = None
        batch = next(self._stream.batches)
        self.cpu_s += time.thread_time() - cpu_s
        self.wait_s += time.perf_counter() - wall_s
        index, payload = self._stream.arrays(batch)
        self._work.check(index, payload)
        self._epoch.take(index)
        self._left -= 1
        if not self._left:
            self._epoch.end()
            self._epoch, self._left = Epoch(self._work), self._work.n_samples // self._work.batch_size
        self._batch = batch
        self.n_batches += 1
        return index, payload

    def take_for(self, seconds: float, at_least: int = 3) -> None:
        """Take batches for some seconds."""
        begin_s, n = time.perf_counter(), 0
        while n < at_least or time.perf_counter() - begin_s < seconds:
            self.take()
            n += 1

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self.begin_s

    def counted(self) -> dict[str, float]:
        """The counts since the last reset, as a result."""
        elapsed_s, n = self.elapsed_s, self.n_batches
        sample_bytes = self._work.dtype.itemsize
        for length in self._work.shape:
            sample_bytes *= length
        rate = n * self._work.batch_size / elapsed_s
        return {
            "samples_per_s": rate,
            "gb_per_s": rate * sample_bytes / 1e9,
            "consumer_cpu_us": self.cpu_s / n * 1e6,
            "wait_share": self.wait_s / elapsed_s,
            "n_batches": n,
        }


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Carry out one measurement."""
    work = make_work(spec["work"])
    if isinstance(work, Photos) and work.kind == "remote":
        from bench.webserver import served

        with served(data.SERVED, spec.get("latency_ms", 0)) as url:
            return measured(spec, replace(work, url=url))
    return measured(spec, work)


def measured(spec: dict[str, Any], work: Work) -> dict[str, Any]:
    """Carry out a measurement of this work."""
    peer = PEERS[spec["peer"]]
    work.prepare()
    if peer.is_yardstick:
        rate = peer.load().rate(work, spec["workers"], spec["seconds"])
        sample_bytes = work.dtype.itemsize
        for length in work.shape:
            sample_bytes *= length
        return {"samples_per_s": rate, "gb_per_s": rate * sample_bytes / 1e9}
    if spec["method"] == "train":
        from bench.train import train

        return train(spec["framework"], peer, work, spec["workers"], spec["epochs"])
    begin_s = time.perf_counter()
    peer.load()
    import_s = time.perf_counter() - begin_s
    base_mb = psutil.Process().memory_full_info().pss / 1e6
    result = {"import_s": import_s, "base_mb": base_mb} | METHODS[spec["method"]](spec, peer, work)
    if "first_s" in result:
        result["ready_s"] = import_s + result["first_s"]
    return result


def started(spec: dict[str, Any], peer: Peer, work: Work) -> tuple[Stream, Trainer, float]:
    """A stream that has given its first batch, and the seconds that it took."""
    begin_s = time.perf_counter()
    stream = peer.open(work, spec["workers"], **spec.get("open", {}))
    trainer = Trainer(work, stream)
    trainer.take()
    return stream, trainer, time.perf_counter() - begin_s


def rate(spec: dict[str, Any], peer: Peer, work: Work) -> dict[str, float]:
    stream, trainer, _ = started(spec, peer, work)
    trainer.take_for(spec["warm_s"], at_least=max(3, stream.settles_after))
    trainer.reset()
    trainer.take_for(spec["seconds"])
    result = trainer.counted()
    if isinstance(work, Sleeps):  # the share of the most that so many sleeping workers can do
        result["ideal_share"] = result["samples_per_s"] * work.mean_cost_s / spec["workers"]
    stream.close()
    return result


def first(spec: dict[str, Any], peer: Peer, work: Work) -> dict[str, float]:
    stream, _, first_s = started(spec, peer, work)
    stream.close()
    return {"first_s": first_s}


def steps(spec: dict[str, Any], peer: Peer, work: Work) -> dict[str, float]:
    assert isinstance(work, Sleeps)
    load_s = work.batch_size * (work.mean_cost_s + overslept_s(work.cost_s)) / spec["workers"]
    step_s = spec["step"] * load_s
    n_steps = spec["workers"] * max(3, round(spec["seconds"] / max(load_s, step_s) / spec["workers"]))  # a worker, a batch
    stream, trainer, first_s = started(spec, peer, work)
    for number in range(SETTLING * spec["workers"] + n_steps):
        if number == SETTLING * spec["workers"]:
            trainer.reset()
        time.sleep(step_s)
        trainer.take()
    result = trainer.counted() | {"first_s": first_s, "n_steps": n_steps}
    result["over_ideal"] = trainer.elapsed_s / (n_steps * max(load_s, step_s))
    stream.close()
    return result


def overslept_s(seconds: float) -> float:
    """How much longer a sleep takes on this machine than requested."""
    begin_s = time.perf_counter()
    for _ in range(N_SLEEPS):
        time.sleep(seconds)
    return (time.perf_counter() - begin_s) / N_SLEEPS - seconds


def epoch(spec: dict[str, Any], peer: Peer, work: Work) -> dict[str, float]:
    assert isinstance(work, Photos)
    delay_ms = spec.get("delay_ms", 0)
    if delay_ms:
        from bench.slowfs import mounted

        place: Any = mounted(work.folder, delay_ms)
    else:
        if not work.url:
            data.forget(data.files(work.folder))
        place = nullcontext(work.folder)
    with place as folder:
        work = replace(work, folder=Path(folder), truth_of=work.folder)
        work.prepare()
        read = psutil.disk_io_counters()
        stream, trainer, first_s = started(spec, peer, work)
        trainer.reset()
        for _ in range(work.n_samples // work.batch_size - 1):
            trainer.take()
        result = trainer.counted() | {"first_s": first_s}
        now = psutil.disk_io_counters()
        if read is not None and now is not None:
            result["disk_read_mb"] = (now.read_bytes - read.read_bytes) / 1e6
        stream.close()
        if delay_ms:
            sys.stdout.flush()
    return result


def memory(spec: dict[str, Any], peer: Peer, work: Work) -> dict[str, float]:
    stream, trainer, first_s = started(spec, peer, work)
    trainer.take_for(spec["seconds"] / 3)
    time.sleep(spec["seconds"])  # until all batches ahead are filled: 64 batches of 64, at 1,400 images/s
    trainer.take_for(0.0)
    stream.close()
    return {"first_s": first_s}


def scaling(spec: dict[str, Any], peer: Peer, work: Work) -> dict[str, Any]:
    assert isinstance(work, Sleeps)
    found: dict[str, float] = {}
    for workers in spec["counts"]:
        found[str(workers)] = rate(spec | {"workers": workers}, peer, work)["samples_per_s"]
    last = spec["counts"][-1]
    return {"samples_per_s": found[str(last)], "at": found, "ideal_share": found[str(last)] * work.mean_cost_s / last}


def proof(spec: dict[str, Any], peer: Peer, work: Work) -> dict[str, float]:
    stream, trainer, first_s = started(spec, peer, work)
    search = None
    if isinstance(work, Photos) and work.is_recipe:
        from bench.parts import Search  # here, as it imports OpenCV, whose import counts for ringload in other methods

        search = Search(work)
    for _ in range(work.n_samples // work.batch_size):  # to the end of one epoch, and into the next
        index, payload = trainer.take()
        if search is not None:
            search.take(index, payload)
        del index, payload
    stream.close()
    result = {"n_batches": trainer.n_batches, "first_s": first_s}
    return result if search is None else result | search.end()


METHODS = {"rate": rate, "first": first, "steps": steps, "epoch": epoch, "memory": memory, "scaling": scaling, "proof": proof}


def main() -> None:
    spec = json.loads(sys.argv[1])
    code = 0
    try:
        result = measure(spec)
    except WrongPayloadError as error:
        result, code = {"error": f"wrong payload: {error}"}, WRONG
    except Exception as error:
        import traceback

        traceback.print_exc()
        result, code = {"error": f"{type(error).__name__}: {error}"}, 1
    print(f"RESULT {json.dumps(result)}", flush=True)
    sys.stderr.flush()
    os._exit(code)  # bench.run then kills the process group, with all that a peer has left running


if __name__ == "__main__":
    main()
