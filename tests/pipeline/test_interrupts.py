"""The first interrupt can be deferred; the second ends the process at once."""

from __future__ import annotations

import signal

import pytest

from robustkd.pipeline.interrupts import Interrupts

NUMBERS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture(autouse=True)
def as_in_a_shell():
    """Pytest in the background ignores Ctrl-C, and so would we."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def watched(number: int, times: int, *, deferring: bool) -> int:
    """How often a block got beyond its interrupts before it was ended."""
    found, beyond = Interrupts(), 0
    try:
        with found.watched():
            found.deferring = deferring
            for _ in range(times):
                signal.raise_signal(number)
                beyond += 1
    except KeyboardInterrupt:
        return beyond
    pytest.fail("was not ended")


@pytest.mark.parametrize("number", NUMBERS)
def test_without_a_check_for_interrupts_the_first_ends_at_once(number):
    assert watched(number, 1, deferring=False) == 0


@pytest.mark.parametrize("number", NUMBERS)
def test_the_first_waits_and_the_second_ends_at_once(number):
    assert watched(number, 2, deferring=True) == 1


def test_a_pending_interrupt_ends_the_block():
    assert watched(signal.SIGINT, 1, deferring=True) == 1


def test_a_pending_interrupt_is_raised_when_checks_end():
    found = Interrupts()
    found.deferring = True
    found.no_longer_wait()
    with found.watched():
        assert watched(signal.SIGINT, 1, deferring=False) == 0
    found.asked = True
    with pytest.raises(KeyboardInterrupt):
        found.no_longer_wait()


def test_handlers_are_restored_and_ignored_signals_stay_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    before = [signal.getsignal(number) for number in NUMBERS]
    with Interrupts().watched():
        signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(number) for number in NUMBERS] == before
