"""The reading process is restricted, and its parent never waits forever."""

from __future__ import annotations

import errno
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import save

from robustkd.core.errors import InputError
from robustkd.teacher.untrusted import quarantine, sandbox
from tests.teacher.untrusted.samples import checkpoint, saved, weights

ON_LINUX = sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64")
MIB = 1 << 20
ACTS = {
    "open": "open('/etc/passwd')",
    "create": "os.open('canary', os.O_CREAT | os.O_WRONLY)",
    "socket": "socket.socket()",
    "fork": "os.fork()",
    "exec": "os.execv('/bin/true', ['true'])",
    "system": "os.system('true') == 0 or 1 / 0",
    "kill": "os.kill(os.getppid(), 0)",
    "remove": "os.unlink('precious')",
    "rename": "os.rename('canary', 'other')",
    "link": "os.symlink('other', 'link')",
    "mode": "os.chmod('other', 0o777)",
    "pipe": "os.pipe()",
    "limits": "resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))",
    "memory": f"bytearray({600 * MIB})",
    "write": f"[os.write(1, bytes({MIB})) for _ in range(3)][9]",
}


def giving_up(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs code in a process that has given up what the reading process gives up."""
    start = (
        "import os, resource, socket, sys\n"
        "from robustkd.teacher.untrusted.limits import give_up\n"
        f"print(*give_up(memory={300 * MIB}, seconds=1, written={MIB}), sep='|', file=sys.stderr)\n"
    )
    with (cwd / "out").open("wb") as out:
        return subprocess.run(
            [sys.executable, "-c", start + code],
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            check=False,
        )


@pytest.mark.skipif(not ON_LINUX, reason="system calls are filtered on Linux alone")
def test_forbidden_actions_fail(tmp_path):
    (tmp_path / "precious").touch()
    tries = "".join(
        f"try: {act}; print('{name}', file=sys.stderr)\nexcept (Exception, MemoryError): pass\n"
        for name, act in ACTS.items()
    )
    done = giving_up(tries + "os._exit(0)", tmp_path)
    enforced, *possible = done.stderr.splitlines()
    assert possible == []
    assert set(enforced.split("|")) >= {"memory", "processor time", "system calls", "file size"}
    assert sorted(os.listdir(tmp_path)) == ["out", "precious"]
    assert (tmp_path / "out").stat().st_size == MIB


@pytest.mark.skipif(not ON_LINUX, reason="system calls are filtered on Linux alone")
def test_all_forbidden_actions_work_outside_the_sandbox(tmp_path):
    """So the test above is about what was given up, and not about this machine."""
    (tmp_path / "precious").touch()
    acts = {n: a for n, a in ACTS.items() if n not in ("exec", "system", "write", "limits", "fork")}
    code = "import os, resource, socket\n" + "\n".join(acts.values())
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_processor_time_is_limited(tmp_path):
    assert giving_up("while True: pass", tmp_path).returncode < 0


def run(
    code: str, monkeypatch: pytest.MonkeyPatch, *, seconds: int = 5, begun: bool = True
) -> sandbox.ReadOutcome:
    """A reading process that does something else, after it began to read."""
    code = f"import os; os.write(2, b' '); {code}" if begun else code
    monkeypatch.setattr(sandbox, "_START", code.replace("{", "{{").replace("}", "}}"))
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as target:
        grant = sandbox.Grant(memory=512 * MIB, seconds=seconds, written=MIB)
        return sandbox.run(source.fileno(), target.fileno(), grant)


@pytest.mark.skipif(not ON_LINUX, reason="memory is limited on Linux alone")
def test_a_file_that_needs_too_much_memory_is_refused():
    """Dictionaries of 64 bytes each, from one byte of pickle each."""
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as target:
        source.write(checkpoint(b"\x80\x02" + b"}" * 900_000 + b"."))
        source.seek(0)
        grant = sandbox.Grant(memory=64 * MIB, seconds=30, written=MIB)
        verdict = sandbox.run(source.fileno(), target.fileno(), grant)
    assert verdict.refusal == "needs more memory than is granted for a file of its size"
    assert verdict.peak_mib is not None
    assert verdict.peak_mib < 64


def saying(said: object) -> str:
    return f"import os; os.write(2, {json.dumps(said).encode()!r})"


GOOD = {"enforced": ["memory"], "peak_mib": 1.5, "format": "torch zip"}


def test_a_process_that_hangs_is_ended(monkeypatch):
    started = time.monotonic()
    verdict = run("import time; time.sleep(1000)", monkeypatch, seconds=1)
    assert verdict.refusal == "takes longer than 1 s to read; it is damaged or malicious"
    assert time.monotonic() - started < 60


def test_a_process_that_the_system_kills_is_not_called_slow(monkeypatch):
    verdict = run("import os; os.kill(os.getpid(), 9)", monkeypatch)
    assert verdict.refusal == (
        "cannot be read: the system killed the reading process, most likely because memory ran out"
    )


def test_ignored_signals_of_children_do_not_matter(tmp_path, monkeypatch):
    """As a shell or a scheduler may leave them to us; then nobody learns how a process ended."""
    path = tmp_path / "teacher.pt"
    path.write_bytes(saved(weights()))
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert quarantine.read(path).tensors.keys() == weights().keys()
        assert run("1 / 0", monkeypatch).refusal.startswith("makes the reading process ")
        slow = run("import time; time.sleep(99)", monkeypatch, seconds=1)
        assert slow.refusal.startswith("takes longer than 1 s")
    finally:
        signal.signal(signal.SIGCHLD, before)


@pytest.mark.parametrize(
    ("failing", "number"),
    [
        ("tempfile.TemporaryDirectory", errno.ENOSPC),
        ("tempfile.TemporaryFile", errno.ENOSPC),
        ("tempfile.TemporaryDirectory", errno.EDQUOT),
    ],
)
def test_missing_resources_are_not_blamed_on_the_file(failing, number, tmp_path, monkeypatch):
    path = tmp_path / "teacher.pt"
    path.write_bytes(saved(weights()))

    def full(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(failing, full)
    with pytest.raises(InputError) as caught:
        quarantine.read(path)
    assert str(caught.value) == (
        f"{path} cannot be read because of the system: {os.strerror(number)}; free space in the "
        "folder for temporary files, or set TMPDIR to one that has room for two copies of the file"
    )


@pytest.mark.parametrize(
    ("failing", "number", "limit"),
    [
        ("os.posix_spawn", errno.EAGAIN, "-u"),
        ("tempfile.TemporaryDirectory", errno.EMFILE, "-n"),
        ("tempfile.TemporaryFile", errno.EFBIG, "-f"),
    ],
)
def test_a_limit_of_the_system_is_named(failing, number, limit, tmp_path, monkeypatch):
    path = tmp_path / "teacher.pt"
    path.write_bytes(saved(weights()))

    def full(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(failing, full)
    with pytest.raises(InputError) as caught:
        quarantine.read(path)
    assert str(caught.value) == (
        f"{path} cannot be read because of the system: {os.strerror(number)}; raise the limit "
        f"(ulimit {limit})"
    )


def under(kind: int, most: int, tmp_path: Path) -> str:
    """Read a teacher of 1 MiB, written as 2 MiB, in a process with a limit; return the message."""
    path = tmp_path / "teacher.pt"
    tied = torch.zeros(MIB // 4)
    path.write_bytes(saved({"weight": tied, "again": tied}))
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from robustkd.core.errors import InputError\n"
        "from robustkd.teacher.untrusted import quarantine\n"
        f"resource.setrlimit({kind}, ({most}, {most}))\n"
        "try: quarantine.read(Path(sys.argv[1]))\n"
        "except InputError as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip().removeprefix(f"{path} ")


@pytest.mark.skipif(not ON_LINUX, reason="the limits are those of Linux")
@pytest.mark.parametrize("most", [0, 100_000, 900_000, 3 * MIB // 2])
def test_a_limit_on_file_sizes_is_not_the_fault_of_the_file(most, tmp_path):
    """It strikes the verdict, the copy, or what the reading process writes."""
    assert under(resource.RLIMIT_FSIZE, most, tmp_path).endswith("raise the limit (ulimit -f)")


@pytest.mark.skipif(not ON_LINUX, reason="the limits are those of Linux")
def test_a_low_limit_that_suffices_stays(tmp_path):
    assert under(resource.RLIMIT_FSIZE, 3 * MIB, tmp_path) == ""


@pytest.mark.skipif(not ON_LINUX, reason="the limits are those of Linux")
def test_a_limit_on_memory_is_not_the_fault_of_the_file(monkeypatch):
    """The limit is one of the reading process alone, since torch needs more than that process."""
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as target:
        source.write(checkpoint(b"\x80\x02" + b"}" * 900_000 + b"."))
        source.seek(0)
        lower = "import resource; resource.setrlimit(resource.RLIMIT_AS, ({0}, {0})); "
        monkeypatch.setattr(sandbox, "_START", lower.format(64 * MIB) + sandbox._START)
        grant = sandbox.Grant(memory=512 * MIB, seconds=30, written=MIB)
        verdict = sandbox.run(source.fileno(), target.fileno(), grant)
    assert verdict.refusal == (
        "cannot be read: it needs more memory than this process may use; raise the limit "
        "(ulimit -v)"
    )


@pytest.mark.parametrize("code", ["1 / 0", "import os; os._exit(7)"])
def test_a_process_that_fails_before_it_reads_is_not_the_fault_of_the_file(code, monkeypatch):
    refusal = run(code, monkeypatch, begun=False).refusal
    assert refusal.startswith("cannot be read: the reading process could not start (status ")
    assert refusal.endswith("(ulimit -a); raise them")


def test_a_signal_for_a_large_file_is_not_the_fault_of_the_file(monkeypatch):
    verdict = run(f"os.kill(os.getpid(), {int(signal.SIGXFSZ)})", monkeypatch)
    # Python ignores this signal; a system may not.
    lifted = "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_DFL); "
    assert "return an invalid verdict" in verdict.refusal
    verdict = run(f"{lifted}os.kill(os.getpid(), {int(signal.SIGXFSZ)})", monkeypatch)
    assert verdict.refusal.endswith("raise the limit (ulimit -f)")


@pytest.mark.skipif(not ON_LINUX, reason="/dev/full is on Linux")
def test_a_full_disk_is_told_even_if_the_verdict_is_on_it(monkeypatch):
    """The verdict has its room before the process starts."""
    said: list[int] = []
    made = tempfile.TemporaryFile

    def noted(*_: object, **__: object):
        file = made()
        said.append(file.fileno())
        return file

    spawn = os.posix_spawn

    def checked(*args, **kwargs):
        assert os.fstat(said[0]).st_size == 1 << 17
        return spawn(*args, **kwargs)

    with made() as source, Path("/dev/full").open("wb") as full:
        source.write(saved(weights()))
        monkeypatch.setattr(tempfile, "TemporaryFile", noted)
        monkeypatch.setattr(os, "posix_spawn", checked)
        grant = sandbox.Grant(memory=512 * MIB, seconds=30, written=MIB)
        verdict = sandbox.run(source.fileno(), full.fileno(), grant)
    assert verdict.refusal == (
        "cannot be converted: No space left on device; make sure that the folder for temporary "
        "files (TMPDIR) has room for two copies of it"
    )


def test_a_missing_folder_for_temporary_files_is_reported(tmp_path, monkeypatch):
    path = tmp_path / "teacher.pt"
    path.write_bytes(saved(weights()))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(InputError, match="No such file or directory; check the folder for "):
        quarantine.read(path)


@pytest.mark.parametrize(
    ("code", "status"),
    [("import os; os.abort()", -6), ("1 / 0", 1), ("import os; os._exit(7)", 7)],
)
def test_a_file_whose_reader_fails_is_refused(code, status, monkeypatch):
    refusal = f"makes the reading process fail (status {status}); it is damaged or malicious"
    assert run(code, monkeypatch).refusal == refusal


@pytest.mark.parametrize(
    "said",
    [
        None,
        [],
        {},
        "x",
        {**GOOD, "refusal": "two\nlines"},
        {**GOOD, "format": 3},
        {**GOOD, "candidates": [{"wrappers": ["\x1b[2J"], "ignored": []}]},
        {**GOOD, "candidates": [{"wrappers": [], "ignored": 7}]},
        {**GOOD, "candidates": [{"wrappers": []}]},
        {**GOOD, "candidates": 7},
        {**GOOD, "peak_mib": "much"},
    ],
)
def test_an_invalid_verdict_is_refused(said, monkeypatch):
    assert run(saying(said), monkeypatch).refusal == (
        "makes the reading process return an invalid verdict; it is damaged or malicious"
    )


def test_a_verdict_that_is_too_long_is_refused(monkeypatch):
    code = f"import os; os.write(2, b'{{\"enforced\": [\"{{}}\"]}}'.replace(b'{{}}', b'x' * {MIB}))"
    assert "the reading process return an invalid verdict" in run(code, monkeypatch).refusal


def test_a_valid_verdict_is_accepted(monkeypatch):
    verdict = run(saying({**GOOD, "refusal": "is " + "x" * 9999}), monkeypatch)
    assert verdict.refusal == "is " + "x" * 497
    assert (verdict.enforced, verdict.peak_mib) == (("memory",), 1.5)
    assert verdict.seconds > 0


def test_an_interrupt_leaves_no_process(monkeypatch):
    started: list[int] = []
    start = os.posix_spawn
    monkeypatch.setattr(
        os, "posix_spawn", lambda *a, **k: started.append(start(*a, **k)) or started[-1]
    )
    monkeypatch.setattr(sandbox.time, "sleep", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run("while True: pass", monkeypatch)
    (process,) = started
    with pytest.raises(ChildProcessError):
        os.waitpid(process, os.WNOHANG)


def test_the_process_sees_no_secrets_of_ours(monkeypatch):
    monkeypatch.setenv("SECRET", "x")
    verdict = run(
        "import os, json; assert not {'SECRET', 'PATH', 'HOME'} & set(os.environ);"
        f"os.write(2, json.dumps({GOOD!r}).encode())",
        monkeypatch,
    )
    assert verdict.refusal == ""


def test_output_that_is_no_safetensors_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "teacher.pt"
    path.write_bytes(saved(weights()))
    code = f"import os; os.write(2, b' '); {saying(GOOD)}"
    monkeypatch.setattr(sandbox, "_START", code.replace("{", "{{").replace("}", "}}"))
    with pytest.raises(InputError) as caught:
        quarantine.read(path)
    assert (
        str(caught.value)
        == f"{path} makes the reading process write an invalid file; it is damaged"
    )


def test_a_valid_file_is_read_and_described(tmp_path):
    import hashlib

    path, state = tmp_path / "teacher.pt", weights()
    path.write_bytes(saved({"epoch": 1, "state_dict": state}))
    found = quarantine.read(path)
    assert found.tensors.keys() == state.keys()
    assert (found.name, found.bytes) == ("teacher.pt", path.stat().st_size)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (found.verdict.format, found.surroundings.wrappers) == ("torch zip", ("state_dict",))
    assert found.surroundings.ignored == ("'epoch'",)
    assert os.listdir(tmp_path) == ["teacher.pt"]


@pytest.mark.parametrize("count", [12, pytest.param(300, marks=pytest.mark.slow)])
def test_mutated_files_are_read_or_refused_by_the_whole_path(count, tmp_path):
    path, random = tmp_path / "teacher", Random(count)  # noqa: S311 (no secret)
    state = {"w": torch.arange(5.0), "b": torch.ones(2, 3).t()}
    honest = [saved({"model": state}), save({n: t.contiguous() for n, t in state.items()})]
    ends = {"read": 0, "refused": 0}
    for _ in range(count):
        content = bytearray(random.choice(honest))
        for _ in range(random.randrange(3)):
            content[random.randrange(len(content))] = random.randrange(256)
        path.write_bytes(content)
        try:
            assert sum(t.nbytes for t in quarantine.read(path).tensors.values()) <= 2 * len(content)
            ends["read"] += 1
        except InputError as error:
            ends["refused"] += 1
            message = str(error)
            assert message.isprintable(), message
            assert "the reading process" not in message, message
    assert min(ends.values()) > 0


def test_a_link_within_its_folder_is_followed(tmp_path):
    (tmp_path / "blob").write_bytes(saved(weights()))
    (tmp_path / "teacher.pt").symlink_to("blob")
    assert len(quarantine.read(tmp_path / "teacher.pt").tensors) == len(weights())


def test_without_a_way_to_start_a_process_nothing_is_read(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "posix_spawn")
    with pytest.raises(InputError, match="cannot be read safely on this system; use Linux or mac"):
        quarantine.read(tmp_path / "teacher.pt")
