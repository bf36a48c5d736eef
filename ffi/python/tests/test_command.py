"""``python -m towline`` is the command: its output, its exit codes, its children, and Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

COMMAND = [sys.executable, "-m", "towline"]
SHORT = ["--transport", "tcp", "--pattern", "latency", "--size", "8", "--duration", "0.5"]


def command(*arguments: str, seconds: float = 50) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=seconds)


def test_version_and_help_are_printed() -> None:
    version = command("--version")
    assert version.returncode == 0 and version.stdout.startswith("towline "), version
    help_text = command("--help")
    assert help_text.returncode == 0
    assert all(word in help_text.stdout for word in ("info", "bench", "explain", "serve")), help_text.stdout


def test_info_lists_the_backends() -> None:
    done = command("info")
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("mem", "shm", "tcp")), done.stdout


@pytest.mark.parametrize("arguments", [["nothing"], ["bench", "--no-such-option"], ["explain", "nowhere"]])
def test_wrong_arguments_exit_with_2(arguments: list[str]) -> None:
    done = command(*arguments)
    assert done.returncode == 2, done
    assert done.stderr


def test_explain_of_a_port_where_nobody_listens_fails_with_a_text() -> None:
    done = command("explain", "tcp://127.0.0.1:1")
    assert done.returncode not in (0, 2), done
    assert "127.0.0.1:1" in done.stdout + done.stderr


def children(pid: int) -> list[str]:
    found = subprocess.run(["ps", "-o", "args=", "--ppid", str(pid)], capture_output=True, text=True, timeout=10)
    return found.stdout.splitlines()


def serving() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "serve", "towline://127.0.0.1:0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def address_of(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    line = ""
    while "://127.0.0.1:" not in line:
        line = server.stdout.readline()
        assert line, "the server ended"
    return next(word.rstrip(".,;") for word in line.split() if "://127.0.0.1:" in word)


def test_explain_tells_the_path_to_a_server_and_ctrl_c_ends_it_with_130() -> None:
    with serving() as server:
        try:
            done = command("explain", address_of(server))
            assert done.returncode == 0, done.stdout + done.stderr
            assert "shm" in done.stdout, done.stdout
            server.send_signal(signal.SIGINT)
            start = time.monotonic()
            assert server.wait(20) == 130
            assert time.monotonic() - start < 5
        finally:
            server.kill()


@pytest.mark.timeout(120)
def test_a_short_bench_runs_in_children_of_the_interpreter() -> None:
    with subprocess.Popen(
        [*COMMAND, "bench", *SHORT], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as bench:
        try:
            seen: set[str] = set()
            while bench.poll() is None and not seen:
                seen.update(line for line in children(bench.pid) if "-m towline" in line)
                time.sleep(0.02)
            output, _ = bench.communicate(timeout=100)
            assert bench.returncode == 0, output
            assert seen, f"no child was started as `python -m towline`: {output}"
        finally:
            bench.kill()


def test_ctrl_c_ends_a_bench_with_130() -> None:
    with subprocess.Popen(
        [*COMMAND, "bench"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True
    ) as bench:
        try:
            deadline = time.monotonic() + 20
            while not children(bench.pid) and time.monotonic() < deadline:
                time.sleep(0.02)
            bench.send_signal(signal.SIGINT)
            assert bench.wait(20) == 130
        finally:
            bench.kill()
