"""The soak's script: `python -m tests.soaking SEED SECONDS`. Loaders of all kinds, one after another, under all faults at once.

Each round makes the truth with a loader without workers, then receives the same from one with workers, while it kills,
stops, interrupts, forks, keeps, closes, resumes and seeks, at times beside a second loader, and in the test mode. Every batch
is compared, byte for byte, with what (seed, epoch, number) gives. After each round nothing may be left. It prints what it
does, one line a step, and at the end what it has counted. What it loads is in `tests.soak_sources`.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import queue
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from ringload import Batch, Loader, LoaderClosedError, SampleError
from ringload.ring.sanitizer import VARIABLE
from ringload.workers import templates
from tests.helpers import Truth, check
from tests.moments import inside
from tests.soak_parts import METHODS, Beside, bytes_of, compare, own_bytes, sample, say
from tests.soak_sources import SOURCES, STRIKE_ONCE

HANG_S = 180  # a round takes seconds
WARM_ROUNDS = 12  # until each decoder and allocator has taken what it keeps
WARM_LOOKS = 30  # until one of each start method was among those that were looked at
GROWTH_BYTES = 24 << 20  # the allocator's own noise over hours was 9 MB; a ring that leaked once a round is above it in ten
Key = tuple[int, int]


@dataclass
class Round:
    """One combination of everything, and where its iteration is."""

    kind: str
    source: Any
    options: dict[str, Any]
    expected: dict[Key, dict[str, bytes] | int]  # a batch's bytes, or the bad sample that is raised in its place
    n_epochs: int
    due: Key = (0, 0)
    kept: list[tuple[Key, Batch]] = field(default_factory=list)


class Soak:
    """All rounds."""

    def __init__(self, seed: int, photos: Path, folder: Path) -> None:
        self.rng = random.Random(seed)
        self.photos, self.folder = photos, folder
        self.kinds: list[str] = []  # that are still to come before all come again
        self.beside: Beside | None = None
        self.largest_bytes: list[int] = []  # what the largest of the server and the workers had, at times
        self.counts: Counter[str] = Counter()
        self.interruptible = False
        self.errors: list[str] = []
        self.to_release: queue.Queue[Any] = queue.Queue()
        self.timers: list[threading.Timer] = []
        threading.Thread(target=self._release_forever, daemon=True).start()
        signal.signal(signal.SIGINT, self._interrupt)

    # -- faults -------------------------------------------------------------------------------------------------------

    def _interrupt(self, number: int, frame: Any) -> None:
        if self.interruptible and inside(frame):
            self.interruptible = False
            self.counts["Ctrl-C that is caught"] += 1
            raise KeyboardInterrupt

    def _release_forever(self) -> None:
        """End leases in a thread of their own, after a look at whether anybody has written into them."""
        while True:
            expected, batch, explicit = self.to_release.get()
            try:
                compare(batch, expected)
                if explicit:
                    batch.release()
            except BaseException as error:
                self.errors.append(f"in the thread that ends leases: {error!r}")
            del batch
            self.to_release.task_done()

    def later(self, act: Callable[[], None]) -> None:
        """Do something within 30 ms."""
        timer = threading.Timer(self.rng.uniform(0, 0.03), act)
        timer.daemon = True
        self.timers.append(timer)
        timer.start()

    def kill(self, made: Round) -> None:
        """Whoever it is; where samples strike once, the server: a worker's end by another hand would be the second strike."""
        victims = processes(recursive=made.kind not in STRIKE_ONCE)  # the server first
        if victims:
            victim = victims[0] if self.rng.random() < 0.2 else self.rng.choice(victims)
            self.counts["kill -9 of a worker or the server"] += 1
            self.later(lambda: _signal(victim, signal.SIGKILL))

    def stop(self, made: Round) -> None:
        victims = processes()[1:]
        if victims:
            victim = self.rng.choice(victims)
            self.counts["a worker is stopped and continued"] += 1
            _signal(victim, signal.SIGSTOP)
            self.later(lambda: _signal(victim, signal.SIGCONT))

    def ctrl_c(self, made: Round) -> None:
        self.later(lambda: os.kill(os.getpid(), signal.SIGINT))

    def fork(self, made: Round) -> None:
        """A child that ends at once."""
        self.counts["forks of the trainer in mid-iteration"] += 1
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)

    def weigh(self, made: Round) -> None:
        """Whether the memory of the server and the workers is flat."""
        largest = self.largest_bytes
        largest.append(max(map(own_bytes, processes()), default=0))
        self.counts["looks at the workers' memory"] += 1
        assert largest[-1] < max(largest[:WARM_LOOKS]) + GROWTH_BYTES, f"the largest worker's memory: {largest}"

    # -- a round ------------------------------------------------------------------------------------------------------

    def prepare(self) -> Round:
        rng = self.rng
        self.kinds = self.kinds or rng.sample(list(SOURCES), len(SOURCES))
        kind = self.kinds.pop()
        source, extra = SOURCES[kind](self.photos, Path(tempfile.mkdtemp(dir=self.folder)))
        os.environ[VARIABLE] = rng.choice("001")
        self.counts["rounds in the test mode"] += os.environ[VARIABLE] == "1"
        options = {
            "batch_size": rng.choice([1, 3, 8, 24]),
            "seed": rng.randrange(1000),
            "shuffle": rng.random() < 0.8,
            "last": rng.choice(["drop", "keep", "pad"]),
            "on_error": rng.choice(["raise", "skip", "replace"]),
            "copy": rng.random() < 0.2,
            "max_bad": 10**9,
            "restarts": None,
            "stall_timeout": 60.0,
            "ram_budget": "1GB",
            **extra,
        }
        say(f"truth of {kind}, test mode {os.environ[VARIABLE]}: {options}")
        made = Round(kind, source, options, {}, n_epochs=2)
        with Loader(source, workers=0, **options) as alone:
            self._receive_all(alone, made)
        self.counts[f"loaders of {kind}"] += 1
        return made

    def _receive_all(self, alone: Loader, made: Round) -> None:
        while alone.epoch < made.n_epochs:
            iterator = iter(alone)
            while True:
                key = (alone.epoch, alone.position)
                try:
                    batch = next(iterator, None)
                except SampleError as error:
                    made.expected[key] = error.index
                    continue
                if batch is None:
                    break
                if isinstance(made.source, Truth):
                    check(batch)
                made.expected[key] = bytes_of(batch)

    def open(self, made: Round) -> Loader:
        """A loader with workers, interrupted or not, that goes on where `made` is."""
        workers, method = self.rng.choice([0, 1, 2, 2, 3, 4]), self.rng.choice(METHODS)
        say(f"open with {workers} workers by {method} at {made.due}")
        if self.rng.random() < 0.3:
            self.counts["second loaders at the same time"] += 1
            self.beside = Beside(self.rng)
        self.counts[f"loaders started by {method}"] += 1
        while True:
            try:
                self.interruptible = True
                return Loader(made.source, workers=workers, start_method=method, **made.options)
            except KeyboardInterrupt:
                gc.collect()
            finally:
                self.interruptible = False

    def go_to(self, loader: Loader, due: Key) -> Any:
        """An iterator that begins at `due`: by set_epoch, or by a state."""
        while True:
            try:
                self.interruptible = True
                if due[1] == 0 and self.rng.random() < 0.5:
                    self.counts["seeks by set_epoch"] += 1
                    loader.set_epoch(due[0])
                else:
                    self.counts["resumes by a state"] += 1
                    loader.load_state_dict({**loader.state_dict(), "epoch": due[0], "position": due[1]})
                return iter(loader)
            except KeyboardInterrupt:
                continue
            finally:
                self.interruptible = False

    def receive(self, made: Round, loader: Loader, iterator: Any) -> bool:
        """The batch that is due, or what comes in its place. False at the end of an epoch."""
        after = (made.due[0], made.due[1] + 1) if made.due[1] + 1 < len(loader) else (made.due[0] + 1, 0)
        try:
            self.interruptible = True
            batch = next(iterator, None)
            self.interruptible = False
        except SampleError as error:
            self.interruptible = False
            self.raised(made, error)
        except KeyboardInterrupt:
            now = (loader.epoch, loader.position)
            assert now in (made.due, after), f"interrupted at {made.due}, the loader is at {now}"
            made.due = now
            return True
        else:
            if batch is None:
                assert loader.position == 0
                return False
            assert (batch.epoch, batch.number) == made.due, f"{(batch.epoch, batch.number)} in place of {made.due}"
            expected = made.expected[made.due]
            assert not isinstance(expected, int), f"sample {expected} was to be raised in place of {made.due}"
            compare(batch, expected)
            self.counts["batches verified"] += 1
            self.counts["rows verified"] += len(batch.index)
            if self.rng.random() < 0.3:
                made.kept.append((made.due, batch))
            del batch
        made.due = after
        return True

    def raised(self, made: Round, error: SampleError) -> None:
        assert error.index == made.expected[made.due], f"{error} in place of {made.due}"
        self.counts["bad samples that were raised"] += 1

    def let_go(self, made: Round, most: int) -> None:
        """End the leases of all but `most` of what is kept, in any order."""
        while len(made.kept) > most:
            key, batch = made.kept.pop(self.rng.randrange(len(made.kept)))
            self.counts["leases ended by another thread"] += 1
            self.to_release.put((made.expected[key], batch, self.rng.random() < 0.5))
            del batch

    def run(self, made: Round) -> None:
        """Until both epochs were received, by as many loaders as it takes."""
        rng = self.rng
        while made.due[0] < made.n_epochs:
            loader = self.open(made)
            iterator = self.go_to(loader, made.due)
            while made.due[0] < made.n_epochs:
                for act, share in FAULTS:
                    if rng.random() < share:
                        say(f"{act.__name__} at {made.due}")
                        act(self, made)
                if self.beside is not None and rng.random() < 0.3:
                    self.beside.step()
                begun = made.due
                if not self.receive(made, loader, iterator):
                    iterator = iter(loader)
                elif made.due[1] == 0 and made.due != begun and rng.random() < 0.5:
                    iterator = self.go_to(loader, made.due) if made.due[0] < made.n_epochs else iterator
                self.let_go(made, rng.randrange(0, 6))
                if rng.random() < 0.02:
                    assert loader.stats.n_full >= 0
                if rng.random() < 0.02:
                    say(f"close at {made.due}")
                    self.counts["closes in mid-epoch"] += 1
                    break
            self.close(loader, iterator)
            assert not self.errors, self.errors
        self.let_go(made, 0)
        if made.kind in STRIKE_ONCE:
            self.counts[f"strikes of {made.kind}"] += len(list(made.source.folder.iterdir()))

    def close(self, loader: Loader, iterator: Any) -> None:
        """Close, from here or from another thread, interrupted or not; afterwards it is closed."""
        if self.beside is not None:
            self.beside.close()
            self.beside = None
        if self.rng.random() < 0.3:
            thread = threading.Thread(target=loader.close)
            thread.start()
            thread.join()
        with suppress(KeyboardInterrupt):
            self.interruptible = True
            loader.close()
        self.interruptible = False
        loader.close()
        try:
            next(iterator)
        except (LoaderClosedError, StopIteration):
            return
        raise AssertionError("a closed loader gives batches")

    def poll(self) -> None:
        """Wait for the timers and the thread that ends leases."""
        for timer in self.timers:
            timer.join()
        self.timers.clear()
        self.to_release.join()
        gc.collect()


FAULTS = ((Soak.kill, 0.04), (Soak.stop, 0.03), (Soak.ctrl_c, 0.08), (Soak.fork, 0.02), (Soak.weigh, 0.02))  # and their shares


def processes(recursive: bool = True) -> list[psutil.Process]:
    """The servers and, with `recursive`, the workers. Templates stay: others may have yet to be forked by them."""
    stay = {template.pid for template in templates.running()}
    return [one for one in psutil.Process().children(recursive) if one.pid not in stay]


def _signal(process: psutil.Process, number: int) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def main() -> None:
    seed, seconds, photos = int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3])
    # What Python itself swallows in a finalizer is an interruption that did not take place.
    sys.unraisablehook = lambda args: None if args.exc_type is KeyboardInterrupt else sys.__unraisablehook__(args)
    with tempfile.TemporaryDirectory() as folder:
        run(Soak(seed, photos, Path(folder)), seconds)


def run(soak: Soak, seconds: float) -> None:
    """Rounds, until that time is over."""
    end_s, n_rounds, flat, rss = time.monotonic() + seconds, 0, None, []
    while time.monotonic() < end_s:
        faulthandler.dump_traceback_later(HANG_S, exit=True)
        made = soak.prepare()
        soak.run(made)
        del made
        soak.poll()
        n_rounds += 1
        now = sample()
        flat = flat or now
        assert now == flat, f"after round {n_rounds}: {now}, and after the first {flat}"
        rss.append(psutil.Process().memory_info().rss)
        assert rss[-1] < max(rss[:WARM_ROUNDS]) + GROWTH_BYTES, f"RSS after each round: {rss}"
    faulthandler.cancel_dump_traceback_later()
    say(json.dumps({**soak.counts, "rounds": n_rounds}))


if __name__ == "__main__":
    main()
