import os
import signal
import subprocess
import sys
import threading

import pytest

from experiments._run.signals import EXIT_STATUS, STOPPED, Signals


@pytest.mark.parametrize("number", STOPPED)
def test_the_first_signal_is_noted_and_handlers_are_restored(number):
    before = [signal.getsignal(n) for n in STOPPED]
    with Signals(quiet=True) as signals:
        assert signals.number == 0
        signal.raise_signal(number)
        assert signals.number == number
        assert signal.getsignal(number) == signal.SIG_DFL  # the next one ends the process
    assert [signal.getsignal(n) for n in STOPPED] == before


def test_what_a_shell_reports():
    assert EXIT_STATUS == {"interrupted": 130, "terminated": 143}


def test_processes_of_torchrun_note_all_signals():
    with Signals(quiet=True, passed_on=True) as signals:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert signals.number == signal.SIGTERM


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Signals(quiet=True) as signals:
            signal.raise_signal(signal.SIGINT)
            assert signals.number == 0
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_leave_signals_alone():
    before, found = signal.getsignal(signal.SIGINT), []

    def work():
        with Signals(quiet=True):
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]


def test_the_first_is_reported_and_the_second_ends_the_process():
    code = (
        "import signal; from experiments._run.signals import Signals\n"
        "with Signals():\n"
        "    signal.raise_signal(signal.SIGINT); print('still here', flush=True)\n"
        "    signal.raise_signal(signal.SIGINT); print('never')"
    )
    # As in a terminal, also where this test itself runs in the background of a script.
    start = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    line = [sys.executable, "-c", start + f"exec({code!r})"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == -signal.SIGINT
    assert done.stdout == "still here\n"
    assert "interrupted: stopping after this step; once more ends it at once" in done.stderr
