"""Limits of the system, /dev/shm and /proc: what needs none of them, or names which is too low, undone."""

from tests.breaks import Break, Edit

IN_DEV_SHM = Edit(
    "system/segment.py",
    'self._open(os.memfd_create, "ringload", os.MFD_CLOEXEC)',
    'self._open(os.open, "/dev/shm", os.O_TMPFILE | os.O_RDWR, 0o600)',
)


def limited(what: str) -> str:
    return f"test_rlimits.py::test_what_is_limited_suffices_or_is_named[{what}-forkserver]"


TABLE = (
    Break(
        "the ring lies in /dev/shm",
        ("/dev/shm (64 KB|absent|full|read-only)",),
        (IN_DEV_SHM,),
        tuple(
            f"test_rlimits.py::test_the_ring_needs_no_dev_shm[{how}-forkserver]"
            for how in ("64 KB", "full", "read-only", "absent")
        ),
        r"assert|No space|No such file|Read-only",
    ),
    Break(
        "a process that may not name itself ends",
        ("/proc read-only",),
        (
            Edit(
                "workers/worker.py",
                '    with suppress(OSError), open("/proc/self/comm", "w") as comm:',
                '    with open("/proc/self/comm", "w") as comm:',
            ),
        ),
        ("test_rlimits.py::test_proc_may_be_otherwise[read-only-forkserver]",),
        r"self/comm",
    ),
    Break(
        "memory that the kernel does not tell of is none",
        ("/proc without MemAvailable",),
        (
            Edit(
                "system/cgroups.py",
                '    if number := _number(Path("/proc/meminfo"), "MemAvailable:"):\n',
                '    if (number := _number(Path("/proc/meminfo"), "MemAvailable:")) is not None:\n',
            ),
        ),
        ("test_rlimits.py::test_proc_may_be_otherwise[without MemAvailable-forkserver]",),
        r"BudgetError|assert",
    ),
    Break(
        "a mapping that is refused is no error of ringload's own",
        ("RLIMIT_AS",),
        (
            Edit(
                "system/segment.py",
                "    except OSError as error:  # RLIMIT_AS, or no",
                "    except ValueError as error:  # RLIMIT_AS, or no",
            ),
        ),
        ("test_rlimits.py::test_address_space_suffices_or_is_named[forkserver]",),
        r"assert|Cannot allocate|Error",
        60,
    ),
    Break(
        "a segment that may not be so large is no error of ringload's own",
        ("RLIMIT_FSIZE",),
        (
            Edit(
                "system/segment.py",
                "        except OSError as error:  # RLIMIT_FSIZE counts",
                "        except ValueError as error:  # RLIMIT_FSIZE counts",
            ),
        ),
        (limited("FSIZE 10485760 before"),),
        r"File too large|assert",
    ),
    Break(
        "what limit was met at the start is not named",
        ("RLIMIT_NOFILE",),
        (Edit("loader.py", "            raise said_as_refused(error) from error\n", "            raise\n"),),
        (limited("NOFILE 9 after"),),
        r"Too many open files|n files",
    ),
    Break(
        "what limit was met by another server is not named",
        ("RLIMIT_NOFILE at a restart of the server",),
        (
            Edit(
                "workers/supervisor.py",
                '                raise refused("cannot start the fork server", error) from error\n',
                "                raise\n",
            ),
        ),
        ("test_rlimits.py::test_no_file_for_another_server_is_named",),
        r"open files|Traceback",
        60,
    ),
    Break(
        "more files are opened ahead than may be",
        ("RLIMIT_NOFILE with a source that opens files", "RLIMIT_NOFILE"),
        (
            Edit(
                "storage/read_ahead.py",
                "        self._max_open = min(MAX_OPEN, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)\n",
                "        self._max_open = MAX_OPEN\n",
            ),
            Edit(
                "storage/read_ahead.py",
                "    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)\n",
                "    return False\n",
            ),  # or a full table of descriptors would be made good
        ),
        ("test_rlimits.py::test_files_are_asked_for_ahead_as_far_as_they_can_be_open",),
        r"Too many open files|assert",
        60,
    ),
    Break(
        "a worker that cannot be started ends the server",
        ("RLIMIT_NPROC", "pids.max of a cgroup"),
        (
            Edit(
                "workers/fork_server.py",
                "            except OSError as error:  # told as a death",
                "            except ValueError as error:  # told as a death",
            ),
        ),
        (
            "test_rlimits.py::test_processes_suffice_or_their_limit_is_named[forkserver]",
            "test_rlimits.py::test_a_cgroup_without_pids_is_named[forkserver]",
        ),
        r"Resource temporarily unavailable|assert",
        60,
    ),
    Break(
        "the command line of the server is long",
        ("RLIMIT_STACK",),
        (
            Edit(
                "workers/interpreter.py",
                "message, *as_it_was.path]",
                'message, *as_it_was.path, *["x" * 100_000] * 2]',
            ),
        ),
        (limited("STACK 262144 before"),),
        r"assert|Argument list too long",
    ),
    Break(
        "the lifeline is a signal of those that are queued",
        ("RLIMIT_SIGPENDING", "kill -9 of the trainer while all its processes are stopped"),
        (
            Edit(
                "workers/fork_server.py",
                "    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGKILL)\n",
                "    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGRTMIN)\n",
            ),
        ),
        ("test_exit.py::test_the_trainer_is_killed_while_workers_are_stopped[no signal can be queued]",),
        r"timed out after|a mapping in process",
    ),
    Break(
        "the ring is locked into memory",
        ("RLIMIT_MEMLOCK",),
        (
            Edit(
                "system/segment.py",
                "        return np.frombuffer(mmap.mmap(fd, n_bytes, prot=prot), np.uint8)\n",
                "        return np.frombuffer(mmap.mmap(fd, n_bytes, mmap.MAP_SHARED | 0x2000), np.uint8)  # MAP_LOCKED\n",
            ),
        ),
        (limited("MEMLOCK 0 before"),),
        r"assert|BudgetError",
    ),
)
