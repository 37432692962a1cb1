"""Batches that are all kept: an error at once where nobody else could give one back; else a warning, and the wait goes on.

In interpreters of their own, as pytest's time limit is another thread. Who waits there for ever is ended by `run`.
"""

from __future__ import annotations

import os

import pytest

from tests.conftest import Injected
from tests.helpers import run

pytestmark = [pytest.mark.fault, pytest.mark.timeout(300)]

BEGIN = """
import gc, itertools, os, signal, sys, threading, time, warnings, _thread
import numpy as np
import ringload, ringload.engine.waiting
from tests.helpers import Truth, check, content
warnings.simplefilter("error")
def loader(n=700, batch_size=7, **options):
    return ringload.Loader(Truth(n), batch_size, **{"workers": 0, "stall_timeout": 10**6, **options})
def starved(call, *wanted):
    try: call()
    except ringload.AllSlotsLentError as error:
        for text in ("every slot of the ring is lent", "raise ram_budget", *wanted): assert text in str(error), error
    else: raise AssertionError("every batch was kept, and more came")
AT_ONCE = "No other thread could give one back, so the loader does not wait"
"""


def child(code: str, variables: dict[str, str] | None = None) -> str:
    """What a script prints that ends well, with BEGIN before it."""
    done = run(BEGIN + code, timeout=200, env={**os.environ, **(variables or {})})
    assert done.returncode == 0, done.stderr
    return done.stdout


WAYS = """
ways = {
    "batches": (lambda made: list(made), "batch.copy()"),
    "arrays": (lambda made: [batch["image"] for batch in made], "Loader(copy=True)"),
    "views": (lambda made: [batch["image"][1:, ..., 0].T for batch in made], "batch.copy()"),
    "memoryviews": (lambda made: [memoryview(batch["label"]) for batch in made], "batch.copy()"),
    "a cycle of itertools": (lambda made: next(itertools.islice(itertools.cycle(made), 200, None)), "batch.release()"),
    "peeked at": (lambda made: [(made.peek(), batch) for batch in made], "batch.copy()"),
    "sorted": (lambda made: sorted(made, key=lambda batch: batch.index[0]), "batch.copy()"),
}
n = 0
for name, (keep, advice) in ways.items():
    for workers in (0, 2) if name == "batches" else (0,):
        with loader(workers=workers) as made:
            n_slots = made.plan().n_slots
            who = ("batch 0 of epoch 0 for", f"batch {n_slots - 1} of epoch 0", f"{n_slots} in all")
            starved(lambda: keep(made), AT_ONCE, advice, *who)
            gc.collect()
            assert sum(len(check(batch)) for batch in made) == 700, name  # it goes on, once they are gone
            n += 1

# as it advises
for keep, options in ((lambda batch: batch.copy(), {}), (lambda batch: batch, {"copy": True})):
    with loader(**options) as made:
        kept = [keep(batch) for batch in made]
    with loader() as made:
        right = [batch for batch in map(content, ([batch] for batch in made))]
    assert content(kept) == [one for (one,) in right]

# the garbage collector's, which does not run by itself
gc.disable()
with loader() as made:
    for batch in made:
        cycle = [batch]
        cycle.append(cycle)
        del batch, cycle
gc.enable()
print(n)
"""


def test_at_once_where_no_other_thread_could_give_one_back(injected: Injected) -> None:
    injected("ring whose every slot is kept by the thread that asks", int(child(WAYS)))


OTHERS = """
ringload.engine.waiting.WARN_S, ringload.engine.waiting.LOOK_S = 0.1, 0.05
def held(made): return list(itertools.islice(made, made.plan().n_slots))

# another thread gives one back, late: of any kind, and one that does not look as if it would
def by_thread(later): threading.Thread(target=later, daemon=True).start()
def by_raw_thread(later): _thread.start_new_thread(later, ())
def by_timer(later): threading.Timer(0.01, later).start()
def by_alarm(later):
    signal.signal(signal.SIGALRM, lambda *_: later() if said and kept else None)
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
for way in (by_thread, by_raw_thread, by_timer, by_alarm):
    with loader() as made:
        iterator = iter(made)
        kept = [next(iterator) for _ in range(made.plan().n_slots)]
        said = []
        def later():
            while not said: time.sleep(0.001)  # until it was warned
            kept.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = lambda message, *_: said.append(str(message))
            way(later)
            assert len(check(next(iterator))) == 7
        signal.setitimer(signal.ITIMER_REAL, 0)
        (text,) = said
        assert "every slot of the ring is lent" in text, text
        assert "until one is given back, for 1e+06 s at most (stall_timeout)" in text, text

# one that ends without having given any back: then nobody else is there
with loader() as made:
    kept = held(made)
    go_on = threading.Event()
    thread = threading.Thread(target=go_on.wait, daemon=True)
    thread.start()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_: go_on.set()
        starved(lambda: next(iter(made)), AT_ONCE)
    thread.join()
    kept.clear()

# it stays: the wait ends with stall_timeout
with loader(stall_timeout=0.3) as made:
    kept = held(made)
    go_on.clear()
    thread = threading.Thread(target=go_on.wait, daemon=True)
    thread.start()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        starved(lambda: next(iter(made)))
    assert ["for 0.3 s at most" in str(one.message) for one in said] == [True]
    go_on.set()
    thread.join()
    kept.clear()

# a signal handler that runs while it waits, and for longer than the wait should last
for limit_s in (0.2, 10**6):
    with loader(stall_timeout=limit_s) as made:
        iterator = iter(made)
        kept = [next(iterator) for _ in range(made.plan().n_slots)]
        signal.signal(signal.SIGALRM, lambda *_: time.sleep(0.4) or (limit_s > 1 and kept.clear()))
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if limit_s > 1: assert len(check(next(iterator))) == 7
            else: starved(lambda: next(iterator))
        kept.clear()

# a thread of an executor's gives it back; when it has nothing to do, nobody does
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(2) as executor, loader() as made:
    iterator = iter(made)
    kept = [next(iterator) for _ in range(made.plan().n_slots)]
    done = executor.submit(lambda: (time.sleep(0.3), kept.clear()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(check(next(iterator))) == 7
    done.result()
    starved(lambda: list(made), AT_ONCE)

# where a warning is an error, the loader goes on when a batch is given back
with loader() as made:
    iterator = iter(made)
    kept = [next(iterator) for _ in range(made.plan().n_slots)]
    go_on = threading.Event()
    thread = threading.Thread(target=go_on.wait, daemon=True)
    thread.start()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try: next(iterator)
        except RuntimeWarning as warning: assert "every slot of the ring is lent" in str(warning)
        else: raise AssertionError("it did not warn")
    kept.clear()
    assert len(check(next(iterator))) == 7
    go_on.set()
    thread.join()

# and threads that run no code of the user's: a progress bar's
from tqdm import tqdm
with loader() as made, open(os.devnull, "w") as null:
    starved(lambda: list(tqdm(made, file=null)), AT_ONCE)
assert threading.active_count() > 1
print("done")
"""


def test_while_somebody_else_is_there_it_warns_and_waits(injected: Injected) -> None:
    assert child(OTHERS) == "done\n"
    injected("ring whose every slot is kept until another thread gives one back", 4)
    injected("signal handler that outlasts the wait for a slot", 1)


TORCH = """
import torch
from ringload.torch import Batches
for fields, clone in ((None, lambda b: {name: t.clone() for name, t in b.items()}), ("image", lambda b: b.clone())):
    with loader() as made:
        batches = Batches(made, fields=fields)
        starved(lambda: list(batches), AT_ONCE, "tensor.clone()")
        made.set_epoch(0)
        assert len([clone(batch) for batch in batches]) == 100
        made.set_epoch(0)
        starved(lambda: list(made), AT_ONCE, "batch.copy()")  # whoever iterates is told of what he has
with loader(copy=True) as made:
    assert len(list(Batches(made))) == 100

# torch.distributed's threads hold what they send
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
warnings.simplefilter("always")
with loader(stall_timeout=0.3) as made, warnings.catch_warnings(record=True) as said:
    try: list(Batches(made))
    except ringload.AllSlotsLentError as error: assert AT_ONCE not in str(error) and "tensor.clone()" in str(error), error
    else: raise AssertionError("no error")
print("done")
"""


def test_torch_tensors() -> None:
    assert child(TORCH) == "done\n"


KERAS = """
import keras
import ringload.keras
warnings.simplefilter("ignore", DeprecationWarning)  # Keras' own, with this version of NumPy
x = np.arange(400 * 3, dtype="float32").reshape(400, 3)
class Same(keras.layers.Layer):
    def call(self, x): return x
def predicted(**options):
    with ringload.Loader(ringload.Arrays(image=x), 4, workers=0, shuffle=False, stall_timeout=10**6, **options) as made:
        data = ringload.keras.dataset(made, y=None)
        model = keras.Sequential([keras.layers.Input((3,)), Same()])
        return model.predict(data, verbose=0)
# its outputs are its inputs, and Keras keeps all of them until the end
starved(predicted, AT_ONCE, "predict()", "copy=True")
np.testing.assert_array_equal(predicted(copy=True), x)
with ringload.Loader(ringload.Arrays(image=x), 4, workers=0, stall_timeout=10**6) as made:
    data = ringload.keras.dataset(made, y=None)
    starved(lambda: list(data), AT_ONCE, "numpy.array(x)")
    assert len([np.array(one) for one, in data]) == 100
print("done")
"""


def test_outputs_of_keras_on_torch() -> None:
    assert child(KERAS, {"KERAS_BACKEND": "torch"}) == "done\n"


JAX = """
import jax, jax.numpy as jnp
import ringload.jax
import ringload.ring.plan as memory
# JAX works on what the trainer has let go of, and tells nobody when it is done: with 3 slots, each step waits for that
memory.AUTO_SLOTS = 3
@jax.jit
def step(x):
    for _ in range(20): x = jnp.sin(x @ x.T @ x)
    return x.sum()
big = ringload.Arrays(x=np.ones((60, 300, 300), "float32"))
with ringload.Loader(big, 2, workers=0, stall_timeout=10**6) as made:
    assert made.plan().n_slots == 3
    sums = []
    for (one,) in ringload.jax.Batches(made, x="x"):
        sums.append(step(one[0]))
        del one
    assert len(sums) == 30
# what is kept: JAX might give it back, so there is no error at once
memory.AUTO_SLOTS = 64
with loader(stall_timeout=0.3) as made:
    try: list(ringload.jax.Batches(made))
    except ringload.AllSlotsLentError as error:
        assert AT_ONCE not in str(error) and "jax.numpy.copy(array)" in str(error), error
    else: raise AssertionError("no error")
    made.set_epoch(0)
    kept = [jax.tree.map(jnp.copy, batch) for batch in ringload.jax.Batches(made)]
    assert len(kept) == 100
print("done")
"""


def test_jax_which_gives_back_when_it_is_asked_to() -> None:
    assert child(JAX, {"JAX_PLATFORMS": "cpu"}) == "done\n"


TENSORFLOW = """
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
import tensorflow as tf
import ringload.tf
warnings.simplefilter("always")
ringload.engine.waiting.WARN_S = 0.1
for keep in (list, lambda data: [None for _ in data.cache()], lambda data: next(iter(data.shuffle(100)))):
    with loader(stall_timeout=0.4) as made, warnings.catch_warnings(record=True) as said:
        try: keep(ringload.tf.as_dataset(made))
        except Exception as error:
            for text in ("AllSlotsLentError: every slot of the ring is lent", "copy=True"): assert text in str(error), error
        else: raise AssertionError("no error")
        assert any("copy=True" in str(one.message) for one in said)
with loader(copy=True) as made:
    data = ringload.tf.as_dataset(made).cache()
    first = [batch["label"].numpy().tolist() for batch in data]
    assert len(first) == 100 and [batch["label"].numpy().tolist() for batch in data] == first
    assert made.epoch == 1
print("done", flush=True)
os._exit(0)
"""


@pytest.mark.needs("tensorflow")
def test_tensorflow_which_caches() -> None:
    assert child(TENSORFLOW) == "done\n"


NOTEBOOK = """
import sys, nbformat, nbclient
from pathlib import Path
notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sys.argv[1:]])
nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
print(notebook.cells[-1].outputs[-1]["text"], end="")
"""


def test_a_notebook_whose_kernel_has_threads_of_its_own() -> None:
    cells = (
        BEGIN + 'warnings.simplefilter("default")\nmade = loader()\nkept = list(range(3))',
        "try: kept = list(made)\nexcept ringload.AllSlotsLentError as error: said = str(error)",
        "assert AT_ONCE in said and threading.active_count() > 3\nprint('done')",
    )
    done = run(NOTEBOOK, *cells, timeout=120)
    assert done.stdout == "done\n", done.stderr
