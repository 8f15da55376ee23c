"""Interrupts in the processes of vLLM, without vLLM."""

import multiprocessing
import os
import signal

from evotok.vllm import ignore_interrupts


def interrupt(ignored: bool) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if ignored:
        ignore_interrupts()
    os.kill(os.getpid(), signal.SIGINT)


def test_ignore_interrupts_applies_to_processes_of_vllm():
    ends = []
    for ignored in (False, True):
        process = multiprocessing.get_context("fork").Process(target=interrupt, args=(ignored,))
        process.start()
        process.join(60)
        ends.append(process.exitcode)
    assert ends == [-signal.SIGINT, 0]


def test_ignore_interrupts_skips_other_processes():
    before = signal.getsignal(signal.SIGINT)
    ignore_interrupts()
    assert signal.getsignal(signal.SIGINT) is before
