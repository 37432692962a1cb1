"""Whether a lease may end while the thread that waits for that does nothing else. Asked only when every slot is lent.

The problem: a list of batches is never given back while its own thread waits for the next batch, and a wait until
`stall_timeout` would only hide that. But another thread may be at the last lines of a step, and an error would end a run
that could go on. Python does not say which code holds a batch. So the question is which code can run meanwhile.

This assumes that a lease ends by itself only where one of these is there:
1. another thread with Python code, or one that `threading` knows of, but for those of tools that are never given a batch,
   and those of a ThreadPoolExecutor that wait for work;
2. threads of a framework's own, which hold what they were given until their work on it is done: TensorFlow, JAX once it has a
   device, and torch.distributed once it has a process group (where others have threads of native code, torch.jit.fork say,
   the engine sees them use CPU);
3. a timer of this process (`signal.setitimer`), whose handler may run in this thread.
"""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType

OF_TOOLS = {  # whose threads these are: progress bars', and those of a notebook's kernel that run no cell
    "tqdm._monitor",
    "ipykernel.control",
    "ipykernel.heartbeat",
    "ipykernel.iostream",
    "ipykernel.parentpoller",
    "ipykernel.shellchannel",
    "IPython.core.history",
    "zmq.utils.garbage",
}
IDLE = ("concurrent.futures.thread", "_worker")  # Keras has such threads for its callbacks


def only_this_thread() -> bool:
    """Whether no code but the calling thread's can end a lease."""
    if signal.getitimer(signal.ITIMER_REAL)[0] or _frameworks_work():
        return False
    frames = sys._current_frames()
    threads = {thread.ident: thread for thread in threading.enumerate()}
    others = {*frames, *threads} - {threading.get_ident()}
    return all(_does_nothing(threads.get(ident), frames.get(ident or 0)) for ident in others)


def _does_nothing(thread: threading.Thread | None, frame: FrameType | None) -> bool:
    """Whether a thread, which is at `frame`, is a tool's, or one of an executor's that waits to be given something to do."""
    if frame is not None and (frame.f_globals.get("__name__"), frame.f_code.co_name) == IDLE:
        waiting = frame.f_locals.get("work_queue")
        return waiting is not None and waiting.empty()
    return _whose(thread, frame) in OF_TOOLS


def _whose(thread: threading.Thread | None, frame: FrameType | None) -> str:
    """The module of a thread's class, or of the function that it was started for; "" where neither is known."""
    module = type(thread).__module__
    if module not in ("threading", "builtins"):
        return module
    module = ""
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name != "threading":
            module = name
        frame = frame.f_back
    return module


def _frameworks_work() -> bool:
    """Whether one is there whose threads hold arrays without Python's knowledge."""
    if "tensorflow" in sys.modules:
        return True
    bridge = sys.modules.get("jax._src.xla_bridge")  # Keras imports JAX, whatever its backend is
    if bridge is not None and getattr(bridge, "backends_are_initialized", lambda: True)():
        return True
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()
