"""The daemon under a user of its own, as the unit has it; engines of one user, and another who means harm.

Both are members of the group that may place sockets. Each attack fails, and the honest neighbour is served.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import stat
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.smg import KEY_HEADER
from tests.stopping import stop
from tests.system.clients import ask
from tests.system.conftest import MakeGateway, StartAs
from tests.system.gateway import Gateway, replica_of, service_of, states_of
from tests.users import DAEMON, GROUP, ONE, OTHER, User, give, why_not

pytestmark = [pytest.mark.own_users, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]


@pytest_asyncio.fixture
async def gateway(make_gateway: MakeGateway) -> Gateway:
    """Not started yet."""
    return make_gateway()


class Thief:
    """Somebody's socket that writes down what it is told and says nothing useful."""

    def __init__(self) -> None:
        self.heard = b""
        self._server: asyncio.Server | None = None

    async def bind(self, user: User, path: Path) -> None:
        """As `user`: the socket is his, in a directory where he may write."""
        fresh = path.with_name(f".thief-{path.name}")
        self._server = await asyncio.start_unix_server(self._listen, sock=user.binds(fresh))
        assert await user.does("mv", "-nT", fresh, path)
        assert path.lstat().st_uid == user.uid
        assert not fresh.exists()

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            self.heard += await reader.read(65536)
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
        writer.close()

    async def was_asked(self) -> bytes:
        async with asyncio.timeout(60):
            while not self.heard:
                await asyncio.sleep(0.02)
        return self.heard

    def close(self) -> None:
        if self._server is not None:
            self._server.close()


@pytest_asyncio.fixture
async def thief() -> AsyncIterator[Thief]:
    one = Thief()
    yield one
    one.close()


def refused(status: dict[str, Any]) -> dict[str, str]:
    return dict(service_of(status)["source"]["refused"])


def led_to(gateway: Gateway) -> set[str]:
    """Whatever a bridge leads to."""
    return {os.path.realpath(link) for link in (gateway.directory / "run" / "bridges").glob("*.sock")}


async def test_a_link_gives_nobody_what_is_the_daemons_or_a_neighbours(gateway: Gateway, start: StartAs) -> None:
    """Its admin API, hold and SSH agent, and another user's engine: none of them is bridged."""
    agent_path = gateway.directory / "of-daemon" / "agent"
    agent_path.parent.mkdir()
    give(agent_path.parent, DAEMON, 0o700)
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(agent_path))
        agent.listen()
        os.chown(agent_path, DAEMON.uid, DAEMON.uid)
        await gateway.start(env={"SSH_AUTH_SOCK": str(agent_path)})
        await start(ONE, gateway.socket("r1"))
        run_dir = gateway.directory / "run"
        targets = {
            "admin": run_dir / "admin.sock", "hold": run_dir / "hold.sock", "agent": agent_path,
            "r1-too": gateway.socket("r1"), "by-way-of": gateway.sockets() / "dir" / "r1.sock",
        }  # fmt: skip
        assert await OTHER.does("ln", "-s", gateway.sockets(), gateway.sockets() / "dir")
        for name, target in targets.items():
            assert await OTHER.does("ln", "-s", target, gateway.socket(name))
        await start(OTHER, gateway.socket("own"))
        assert await OTHER.does("ln", "-s", "own.sock", gateway.socket("own-too"))
        status = await gateway.until(
            lambda s: refused(s).keys() >= targets.keys() and states_of(s).get("r1") == "serving", within_s=60
        )
        await gateway.until(lambda s: "serving" in (states_of(s).get("own"), states_of(s).get("own-too")))
        reasons = refused(status)
        assert "which is the daemon's own" in reasons["admin"]
        assert "which is the daemon's own" in reasons["hold"]
        assert "which the daemon itself uses" in reasons["agent"]
        for name in ("r1-too", "by-way-of"):
            assert f"is a link of user {OTHER.uid} that leads to" in reasons[name]
            assert f"let user {ONE.uid} or root make the link" in reasons[name]
        bridged = led_to(gateway)
        assert str(gateway.socket("r1").resolve()) in bridged
        assert not {str(run_dir / "admin.sock"), str(run_dir / "hold.sock"), str(agent_path)} & bridged
        assert await ask(gateway, "tiny", stream=False)
        assert {event["replica"] for event in gateway.events("replica.refused")} >= targets.keys()


async def test_not_even_root_bridges_the_daemons_own(gateway: Gateway) -> None:
    """By a link, or under another name of the same socket: told by its inode, or by who listens there."""
    await gateway.start()
    run_dir = gateway.directory / "run"
    gateway.socket("linked").symlink_to(run_dir / "admin.sock")
    for name, own in (("admin", "admin.sock"), ("alive", "nginx/alive.sock")):
        os.link(run_dir / own, gateway.socket(name))
    status = await gateway.until(
        lambda s: refused(s).keys() >= {"linked", "admin"} and states_of(s).get("alive") == "foreign", within_s=60
    )
    assert "which is the daemon's own" in refused(status)["linked"]
    assert "which the daemon itself uses" in refused(status)["admin"]
    assert "one of the gateway's own sockets" in replica_of(status, "alive")["reason"]


async def test_whatever_the_daemon_starts_is_its_users_and_has_no_capability(gateway: Gateway, start: StartAs) -> None:
    """nginx with its workers, the nginx that shows a key, and the router: what holds of the daemon holds of them."""
    await gateway.start()
    write_key(ONE, gateway.socket("r1"))
    await start(ONE, gateway.socket("r1"), require_key="sekrit")
    await gateway.until_states({"r1": "serving"})
    assert gateway.process is not None
    found = {}
    for pid in (gateway.process.pid, *gateway.left_running()):
        about = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        ids = {*about["Uid"].split(), *about["Gid"].split()}
        found[f"{pid} {about['Name']}"] = (ids, int(about["CapEff"], 16))
    assert len([name for name in found if "nginx" in name]) >= 4
    assert len(found) >= 6, found
    assert [its for its in found.values() if its != ({str(DAEMON.uid)}, 0)] == [], found


_CONNECT = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"


async def test_other_users_neither_enter_nor_touch_what_is_the_daemons(gateway: Gateway) -> None:
    """Directories, sockets, memory and signals are closed to members of the replicas' group, and open to root."""
    await gateway.start()
    assert gateway.process is not None
    run_dir, state_dir = gateway.directory / "run", gateway.directory / "state"
    attempts: list[tuple[str | Path, ...]] = [
        *(("ls", place) for place in (run_dir, state_dir)),
        *((sys.executable, "-c", _CONNECT, run_dir / name) for name in ("admin.sock", "hold.sock", "nginx/alive.sock")),
        *(("cat", run_dir / name) for name in ("processes.json", "nginx/nginx.conf")),
        *(("head", "-c1", f"/proc/{pid}/environ") for pid in (gateway.process.pid, *gateway.left_running())),
        *(("kill", "-0", str(pid)) for pid in (gateway.process.pid, *gateway.left_running())),
    ]
    for attempt in attempts:
        assert await DAEMON.does(*attempt), attempt
        for user in (ONE, OTHER):
            assert not await user.does(*attempt), attempt


_ASK = """
import http.client, sys
asked = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=10)
asked.request("GET", "/v1/status")
answer = asked.getresponse()
print(answer.status, answer.read().decode())
"""


async def test_a_link_that_takes_a_sockets_place_is_noticed_and_leads_no_client_to_the_admin_api(
    gateway: Gateway, start: StartAs
) -> None:
    """nginx follows paths. So the API itself answers nobody who comes by way of nginx, however he managed that."""
    await gateway.start()
    one = await start(OTHER, gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    admin = gateway.directory / "run" / "admin.sock"
    links = gateway.directory / "run" / "bridges"
    port = gateway.settings["bridges"]["ports"].partition("-")[2]
    (links / f"{port}.sock").symlink_to(admin)  # As in the moment between that and the next look.
    # By the bridge that judges no paths, and as the user whom it serves.
    status, _, body = (await DAEMON.says(sys.executable, "-c", _ASK, "127.0.0.2", port)).partition(" ")
    assert (status, json.loads(body)) == (
        "403", {"error": "the daemon's child processes may not use the admin API"},
    )  # fmt: skip
    (links / f"{port}.sock").unlink()
    bridge = links / f"{replica_of(await gateway.status(), 'r1')['bridge'].rpartition(':')[2]}.sock"
    assert await OTHER.does("ln", "-sfT", admin, gateway.socket("r1"))
    await gateway.until(lambda s: "r1" in refused(s) and not os.path.lexists(bridge))
    await one.stop()


def write_key(user: User, beside: Path, key: str = "sekrit") -> None:
    """`<replica>.yaml` and the key, both his."""
    notes, file = beside.with_suffix(".yaml"), beside.with_suffix(".key")
    file.write_text(key)
    notes.write_text(f"api_key_file: {file.name}\n")
    for path in (notes, file):
        path.chmod(0o640)
        if why_not() is None:
            os.chown(path, user.uid, DAEMON.uid)


async def test_a_key_is_shown_to_nobody_elses_engine(gateway: Gateway, start: StartAs, thief: Thief) -> None:
    """Not by a link to the notes, not to whoever binds the socket while its owner is away."""
    await gateway.start()
    write_key(ONE, gateway.socket("r1"))
    one = await start(ONE, gateway.socket("r1"), require_key="sekrit", guard_all=True)
    await gateway.until_states({"r1": "serving"})
    assert "r1" in await ask(gateway, "tiny", stream=False)
    assert await OTHER.does("ln", "-s", "r1.yaml", gateway.sockets() / "evil.yaml")
    assert await OTHER.does("ln", "-s", "r1.key", gateway.sockets() / "evil.key")
    await thief.bind(OTHER, gateway.socket("evil"))
    assert b"sekrit" not in await thief.was_asked()
    status = await gateway.until(lambda s: "evil.yaml" in refused(s))
    assert f"belongs to user {ONE.uid}, and the socket beside it to user {OTHER.uid}" in refused(status)["evil.yaml"]
    assert not await OTHER.does("mv", gateway.socket("evil"), gateway.socket("r1"))  # The sticky bit.
    await one.stop()
    assert not gateway.socket("r1").exists()
    thief.heard = b""
    assert await OTHER.does("mv", gateway.socket("evil"), gateway.socket("r1"))
    await gateway.until(lambda s: "r1.yaml" in refused(s))
    assert b"sekrit" not in await thief.was_asked()


async def test_a_key_is_shown_to_the_socket_that_it_was_meant_for_while_no_daemon_is_there(
    gateway: Gateway, start: StartAs, thief: Thief
) -> None:
    """The nginx that shows it holds the socket itself and not its name, and goes on serving the honest one."""
    await gateway.start()
    write_key(ONE, gateway.socket("r1"))
    one = await start(ONE, gateway.socket("r1"), require_key="sekrit", guard_all=True)
    status = await gateway.until_states({"r1": "serving"})
    bridge = f"http://127.0.0.1:{replica_of(status, 'r1')['bridge'].rpartition(':')[2]}"
    shown = json.loads((gateway.directory / "run" / "processes.json").read_text())["bridge_key"]
    await gateway.kill()
    async with aiohttp.ClientSession(headers={KEY_HEADER: shown}) as client:
        async with client.get(f"{bridge}/v1/models") as answer:
            assert answer.status == 200
        await one.stop()
        await thief.bind(OTHER, gateway.socket("r1"))
        async with client.get(f"{bridge}/v1/models") as answer:
            assert answer.status == 503
    assert thief.heard == b""
    gateway.socket("r1").unlink()
    one = await start(ONE, gateway.socket("r1"), require_key="sekrit", guard_all=True)
    await gateway.start()
    await gateway.until_states({"r1": "serving"})


async def test_notes_of_somebody_else_keep_no_replica_from_serving(gateway: Gateway, start: StartAs) -> None:
    """Be they a pipe without a writer, or an order to leave."""
    await gateway.start()
    assert await OTHER.does("mkfifo", gateway.sockets() / "r1.yaml")
    assert await OTHER.does("sh", "-c", f"echo 'worker_type: prefill' > {gateway.sockets()}/r2.yaml")
    for replica in ("r1", "r2"):
        await start(ONE, gateway.socket(replica))
    status = await gateway.until_states({"r1": "serving", "r2": "serving"})
    assert refused(status).keys() == {"r1.yaml", "r2.yaml"}
    assert refused(status)["r2.yaml"].endswith("or the file must be root's; it is not read")


async def test_a_directory_for_each_user(make_gateway: MakeGateway, start: StartAs) -> None:
    """Nobody enters another's, and root may leave notes with a key in a directory that is root's alone."""
    gateway = make_gateway()
    place = gateway.sockets()
    gateway.settings["services"][0]["replicas"]["sockets"] = f"{place}/{{replica}}/engine.sock"
    place.chmod(0o755)
    for replica, user in (("r1", ONE), ("r2", OTHER)):
        (place / replica).mkdir()
        os.chown(place / replica, user.uid, GROUP)
        (place / replica).chmod(0o2750)
    write_key(ONE, place / "r1" / "r1.sock")
    await gateway.start()
    await start(ONE, place / "r1" / "engine.sock", require_key="sekrit", guard_all=True)
    await start(OTHER, place / "r2" / "engine.sock")
    await gateway.until_states({"r1": "serving", "r2": "serving"})
    assert not await OTHER.does("touch", place / "r1" / "x")
    assert not await OTHER.does("mv", place / "r1", place / "r3")


@pytest.mark.parametrize(
    ("user", "name", "spoil", "words"),
    [
        (DAEMON, "run", lambda path: give(path, OTHER, 0o750), f"belongs to user {OTHER.uid}; name another directory"),
        (
            User(0),
            "state",
            lambda path: give(path, OTHER, 0o700),
            f"belongs to user {OTHER.uid}; name another directory",
        ),
        (User(0), "run", lambda path: path.chmod(0o770), "users other than its owner may write in"),
        (DAEMON, "state", lambda path: path.chmod(0o1777), "users other than its owner may write in"),
        (DAEMON, "run", lambda path: path.parent.chmod(0o777), "others may rename what is in"),
        (User(0), "run", lambda path: path.parent.chmod(0o777), "others may rename what is in"),
    ],
)
async def test_directories_that_others_may_write_in_are_not_used(
    make_gateway: MakeGateway, user: User, name: str, spoil: Callable[[Path], None], words: str
) -> None:
    """The daemon says so and ends with 78; nothing that was planted there is followed, not even by root."""
    gateway = make_gateway()
    gateway.before = user.enter
    victim = gateway.directory / "victim"
    victim.write_text("precious")
    for each in ("run", "state"):
        give(gateway.directory / each, user, 0o750)
        for below in ("nginx", "log"):
            (gateway.directory / each / below).mkdir(parents=True)
            for planted in ("nginx.conf", "frontends.lua", "nginx.log"):
                (gateway.directory / each / below / planted).symlink_to(victim)
    (gateway.directory / "state" / ".leases.json.new").symlink_to(victim)
    spoil(gateway.directory / name)
    await gateway.start(ready=False)
    assert gateway.process is not None
    async with asyncio.timeout(60):
        assert await gateway.process.wait() == 78
    setting = f"{name}_dir"
    assert f": {setting}: {gateway.directory / name}: " in gateway.log()
    assert words in gateway.log()
    assert victim.read_text() == "precious"
    code, out, _ = await gateway.cli("check", before=user.enter)
    assert "FAIL" in out
    assert words.partition(";")[0] in out
    assert code == 1


async def test_umask_0_opens_nothing_to_others(make_gateway: MakeGateway, start: StartAs) -> None:
    """nginx's Lua file and configuration, logs, records and sockets: nobody else reads or writes one."""
    gateway = make_gateway()
    gateway.before = [*DAEMON.enter, "sh", "-c", 'umask 0; exec "$@"', "sh"]
    for name in ("run", "state"):
        (gateway.directory / name).rmdir()
    os.chown(gateway.directory, DAEMON.uid, DAEMON.uid)
    await gateway.start()
    write_key(ONE, gateway.socket("r1"))
    await start(ONE, gateway.socket("r1"), require_key="sekrit", guard_all=True)
    await gateway.until_states({"r1": "serving"})
    assert "r1" in await ask(gateway, "tiny", stream=False)
    run_dir, state_dir = gateway.directory / "run", gateway.directory / "state"
    assert [stat.S_IMODE(it.stat().st_mode) for it in (run_dir, state_dir)] == [0o750, 0o700]
    found = {}
    for path in (*run_dir.rglob("*"), *state_dir.rglob("*")):
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:  # Half of a file, which has its place by now.
            continue
        # nginx opens its sockets to all, in directories that are closed.
        if not stat.S_ISLNK(mode) and not (stat.S_ISSOCK(mode) and path.parent.stat().st_mode & 0o077 == 0):
            found[str(path.relative_to(gateway.directory))] = stat.S_IMODE(mode)
    assert found["run/nginx/frontends.lua"] == found["run/nginx/nginx.conf"] == 0o600
    may_be_the_groups = {"run/admin.sock", "run/hold.sock"}
    opened = {
        name: f"{mode:o}" for name, mode in found.items() if mode & (0o007 if name in may_be_the_groups else 0o027)
    }
    assert opened == {}


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (("mkdir", "-m", "0777"), f"belongs to user {OTHER.uid}"),
        (("ln", "-s", "state"), f"is a link of user {OTHER.uid}"),
    ],
)
async def test_a_planted_run_dir_is_not_taken_for_the_one_that_was_removed(
    make_gateway: MakeGateway, plant: tuple[str, ...], words: str
) -> None:
    """In a directory such as /tmp, where others come first; the daemon that runs says so and writes nothing there."""
    gateway = make_gateway()
    gateway.directory.chmod(0o1777)
    await gateway.start()
    run_dir, state_dir = gateway.directory / "run", gateway.directory / "state"
    assert gateway.process is not None
    stop(gateway.process.pid)  # It puts back at once what is gone.
    shutil.rmtree(run_dir)
    assert await OTHER.does(*plant, run_dir)
    gateway.process.send_signal(signal.SIGCONT)
    await gateway.until_logged("run_dir.not_repaired")
    assert words in str(gateway.events("run_dir.not_repaired"))
    assert not {"bridges", "gates", "lock", "admin.sock"} & {
        it.name for at in (run_dir, state_dir) for it in at.iterdir()
    }
    await gateway.terminate()
    run_dir.rename(run_dir.with_name("planted"))  # What the daemon left running is known by the path that it had.
