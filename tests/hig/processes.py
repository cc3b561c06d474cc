"""Short-lived processes on this machine that form a process group."""

import contextlib
import multiprocessing
import os
import signal
import sys
import traceback
from datetime import timedelta

import torch
import torch.distributed as dist

# The server imports torch once; every process is a fork of it.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch.distributed", "tests.hig.networks", "hig"])

DEADLINE = 300


def run(function, size, folder, *arguments):
    """Return the results of ``function(rank, *arguments)`` on each of ``size`` gloo ranks.

    None for a process that ended without returning. An error is raised here, with its traceback.
    """
    store = folder / f"store{size}{function.__name__}"
    pipes, processes = [], []
    for rank in range(size):
        receiver, sender = _context.Pipe(duplex=False)
        given = (function, rank, size, store, sender, arguments)
        process = _context.Process(target=_work, args=given)
        process.start()
        sender.close()
        pipes.append(receiver)
        processes.append(process)
    try:
        return [_received(pipe) for pipe in pipes]
    finally:
        for process in processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()


def _received(pipe):
    assert pipe.poll(DEADLINE), "a process hangs"
    try:
        failure, result = pipe.recv()
    except EOFError:
        return None
    assert failure is None, failure
    return result


def _work(function, rank, size, store, pipe, arguments):
    # As in the tests' own process: the server may have Ctrl-C ignored or held back.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    torch.set_num_threads(1)
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size,
        timeout=timedelta(seconds=60),
    )  # fmt: skip
    result = None
    try:
        result = function(rank, *arguments)
    finally:  # an error is reported before it ends the process
        pipe.send((traceback.format_exc() if sys.exc_info()[0] else None, result))
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()
