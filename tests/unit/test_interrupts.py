"""Ctrl-C and SIGTERM as one exception, in this process only."""

import os
import signal
import threading

import pytest

from vision_stack.training.interrupts import Stopped, stopping_on_signals


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signal_raises_an_exception_that_no_handler_of_errors_swallows(signum: signal.Signals) -> None:
    before = signal.getsignal(signum)

    def work() -> None:
        with stopping_on_signals():
            try:
                os.kill(os.getpid(), signum)
            except Exception:
                pytest.fail("taken for an error")

    with pytest.raises(Stopped, match=f"^stopped by {signum.name}$") as stop:
        work()
    assert stop.value.exit_code == 128 + signum
    assert signal.getsignal(signum) == before


def test_error_after_a_signal_is_its_consequence_and_one_without_is_itself() -> None:
    def work(signum: int) -> None:
        with stopping_on_signals():
            try:
                os.kill(os.getpid(), signum)
            finally:  # as a loader does whose workers got the signal, too
                raise RuntimeError("worker is killed by signal: Terminated")

    with pytest.raises(Stopped, match="SIGTERM"):
        work(signal.SIGTERM)
    with pytest.raises(RuntimeError, match="worker"):
        work(0)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_second_signal_ends_the_process_at_once(signum: signal.Signals) -> None:
    child = os.fork()
    if not child:
        with stopping_on_signals():
            try:
                os.kill(os.getpid(), signum)
            except Stopped:
                os.kill(os.getpid(), signum)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signum


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_forked_worker_dies_of_the_signal_without_a_word(signum: signal.Signals) -> None:
    with stopping_on_signals():
        child = os.fork()
        if not child:
            try:
                os.kill(os.getpid(), signum)
            finally:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signum


def test_outside_of_the_main_thread_signals_are_left_alone() -> None:
    handlers = []

    def work() -> None:
        with stopping_on_signals():
            handlers.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [before]


def test_signal_that_comes_inconveniently_stops_when_asked_or_at_the_end() -> None:
    done = []

    def work(asks: bool) -> None:
        with stopping_on_signals(lambda: False) as signals:
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("step")
            if asks:
                signals.stop_if_asked()
            done.append("end")

    for asks, expected in ((True, ["step"]), (False, ["step", "end"])):
        done.clear()
        with pytest.raises(Stopped, match="SIGTERM"):
            work(asks)
        assert done == expected


def test_second_ctrl_c_in_python_code_is_a_keyboard_interrupt_and_in_a_command_ends_it() -> None:
    """A notebook lives on."""

    def work() -> None:
        with stopping_on_signals(lambda: False):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        work()
    child = os.fork()
    if not child:
        with stopping_on_signals():
            work()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGINT
