"""The Redis users of ``coord acl``: each role can do its work, and nothing else."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

from coord import Agent, Client, queries
from coord.acl import Role, rules, set_user, user_name
from coord.agent_token import digest_of_token
from coord.config import Settings
from coord.connection import connect
from coord.context import acting_for
from coord.embedded import EmbeddedServer
from coord.errors import AgentNotFound, ConfigError, TaskFailed, TaskNotFound, TokenMissing
from coord.keys import Keys
from coord.models.agents import AgentStatus
from coord.models.facts import STREAM_FACTS
from coord.pipeline import pack, send_and_read
from tests.conftest import FAST
from tests.http import HttpCaller
from tests.repo.test_script_headers import DICTIONARY
from tests.running import running_cell
from tests.system.event_source import EventSource
from tests.waiting import wait_until

PASSWORD = "only-for-these-tests"
SETTINGS = Settings(read_block_ms=100, heartbeat_interval_s=0.3, backoff_ms=50, require_tokens=True)
KEYS = Keys(SETTINGS.namespace)
#: Long beside what an answer takes on a busy machine.
PATIENT_S = 30.0
OWN, OTHER = "ocr-1", "ocr-2"


@dataclass
class Users:
    """A server with the users of all roles."""

    admin: Redis
    port: int

    def url(self, role: str, own_id: str | None = None) -> str:
        """Where the server is, for the user of a role."""
        return f"redis://{user_name(Role(role), SETTINGS.namespace, own_id)}:{PASSWORD}@127.0.0.1:{self.port}/0"

    async def denials(self) -> list[Mapping[Any, Any]]:
        """What the server has refused to its users."""
        return [dict(one) for one in await self.admin.execute_command("ACL", "LOG", 100)]


@pytest.fixture(params=["valkey", "redis7"])
async def users(request: pytest.FixtureRequest, tmp_path: Path, unused_port: int) -> AsyncIterator[Users]:
    """A server of its own, on which only these users may do anything; also on the oldest Redis."""
    binary = None if request.param == "valkey" else request.getfixturevalue("redis_server_binary")
    server = EmbeddedServer.start(tmp_path / "data", port=unused_port, extra=FAST, binary=binary)
    try:
        async with connect(server.url, SETTINGS) as admin:
            wanted: list[tuple[Role, str | None]] = [(role, None) for role in Role if role is not Role.AGENT]
            wanted += [(Role.WORKER, kind) for kind in ("registry", "distributor", "router")]
            wanted += [(Role.AGENT, OWN), (Role.AGENT, OTHER)]
            for role, own_id in wanted:
                name = user_name(role, SETTINGS.namespace, own_id)
                await set_user(admin, name, PASSWORD, rules(role, SETTINGS.namespace, own_id))
            yield Users(admin, unused_port)
    finally:
        server.stop(force=True)


# What a role may do, written down here once more and not taken from the table.

#: Families of which each agent has a key of its own, beside its inbox.
OF_AGENTS = ("replies", "links", "subordinates")
#: family -> a key of it; of an agent's own families the ones of another agent as well.
SAMPLES: dict[str, str] = {name: re.sub(r"\{\w+\}", "x1", name) for name in DICTIONARY if name != "in:*"}
SAMPLES |= {f"in:control:{kind}": f"in:control:{kind}" for kind in ("registry", "distributor", "router")}
SAMPLES |= {f"in:tasks:{one}": f"in:tasks:{one}" for one in ("urgent", "low")}
SAMPLES |= {f"in:messages:{one}": f"in:messages:{one}" for one in ("critical", "low")}
SAMPLES |= {f"inbox of {one}": f"inbox:{one}:critical" for one in (OWN, OTHER)}
SAMPLES |= {f"{family} of {one}": f"{family}:{one}" for family in OF_AGENTS for one in (OWN, OTHER)}
SAMPLES |= {"another namespace": "", "no namespace": ""}
del SAMPLES["in:control:{kind}"]

TASKS = r"in:tasks:.*"
MESSAGES = r"in:messages:.*"
STREAM_READS = {"xread", "xrange", "xrevrange", "xlen", "xpending", "xinfo|stream"}
HASH_READS = {"hgetall", "hmget", "hget", "hkeys", "hlen", "hscan", "hstrlen", "hexists"}
SET_READS = {"smembers", "sismember", "smismember", "scard", "sscan", "sinter", "sintercard"}
ZSET_READS = {
    "zrange", "zrevrange", "zrangebyscore", "zrank", "zrevrank", "zscore", "zmscore", "zcard", "zcount", "zscan",
}  # fmt: skip
LOOKS = {"exists", "pttl", "memory|usage"}
HASHES = (
    r"(agent|token|api_key|task|message|copies|links|worker):.*|clock|pools|suspended|counters|histograms|task_types"
    r"|settings|waiting|lanes|pushes|masters|tokens"
)
SETS = r"agents:(active|all|facets|pushed|reported|by:.*)|(inflight|subordinates):.*"
ZSETS = (
    r"agents:(expiry|departed|lost|health)|lanes:routers|pushes:workers|(queue|workers):.*|pools:changed|alarms|deadlines|limits"
    r"|unclaimed|tasks:(terminal|dead|refused)|tombstones|messages:(dead|expiring)|requests|conversation:.*|api_keys"
)
LOGS = "agents|audit|control|messages|progress|tasks"
OF_THE_CELL = "pools|counters|histograms|task_types|waiting|settings|suspended"
#: role -> commands -> the keys on which it may send them, as a pattern.
MAY: dict[Role, list[tuple[set[str], str]]] = {
    Role.AGENT: [
        ({"xadd"}, rf"in:registry|in:beats|in:reports|in:links|{MESSAGES}"),
        ({"xread", "xrange"}, rf"inbox:{OWN}:critical|replies:{OWN}"),
        ({"xdel"}, rf"inbox:{OWN}:critical"),
        ({"hget", "hgetall"}, rf"links:{OWN}|masters"),
        ({"smembers"}, rf"subordinates:{OWN}"),
    ],
    Role.CLIENT: [
        ({"xadd"}, rf"{TASKS}|in:requests|{MESSAGES}"),
        ({"xread", "xrange", "xrevrange"}, rf"{TASKS}|replies:.*"),
        ({"hgetall", "hmget"}, r"(task|message|copies):.*"),
        ({"lrange"}, r"(recipients|outcomes):.*"),
        ({"zrange"}, r"conversation:.*"),
    ],
    Role.GATEWAY: [
        ({"xadd"}, rf"in:registry|in:beats|in:reports|{TASKS}|in:messages:.*|in:requests|in:control:.*"),
        ({"xdel"}, r"inbox:.*"),
        (
            {*STREAM_READS, "exists"},
            rf"{TASKS}|in:(reports|requests|losses)|(replies|inbox|history):.*|log:({LOGS})",
        ),
        # Facts with tokens are counted only.
        ({"xlen", "xpending"}, r"in:.*|dead:in"),
        ({"zcard"}, r"requests"),
        (
            {*HASH_READS, "exists"},
            rf"(agent|token|api_key|task|worker|message|copies|links):.*|tokens|masters|{OF_THE_CELL}",
        ),
        ({*SET_READS, "exists"}, r"agents:(all|active|pushed|facets|by:.*)|(inflight|subordinates):.*"),
        (
            {*ZSET_READS, "exists"},
            r"queue:.*|pools:changed|workers:.*|agents:(health|departed)|api_keys|alarms|tasks:(terminal|dead|refused)|messages:dead|conversation:.*",
        ),
        ({"lrange", "llen", "exists"}, r"(recipients|outcomes):.*"),
        ({"set", "incrby", "getdel"}, r"idempotency:.*"),
        ({"zadd", "zrem", "zremrangebyscore"}, r"api_keys"),
        ({"get", "set", "incrby", "getdel", "exists"}, r"gateway:.*"),
    ],
    Role.OPERATOR: [
        ({"xadd"}, rf"in:control:.*|{TASKS}|in:requests|{MESSAGES}"),
        ({*STREAM_READS, "xinfo|groups", *LOOKS}, r"(in|inbox|replies|history|log):.*|dead:in"),
        ({*HASH_READS, *LOOKS}, HASHES),
        ({*SET_READS, *LOOKS}, SETS),
        ({*ZSET_READS, *LOOKS}, ZSETS),
        ({"lrange", "llen", *LOOKS}, r"(recipients|outcomes):.*"),
        ({"get", *LOOKS}, r"tasks:relieved|size:.*|gateway:.*|idempotency:.*"),
    ],
}
#: role -> its commands without keys.
KEYLESS: dict[Role, set[str]] = {
    Role.AGENT: {"ping", "info"},
    Role.CLIENT: {"ping"},
    Role.GATEWAY: {"ping", "time", "info", "client|tracking"},
    Role.OPERATOR: {"ping", "time", "info", "scan", "dbsize", "config|get", "multi", "exec"},
}
#: What the server lets every user do.
ALWAYS = {"auth", "hello", "reset", "quit"}
#: Commands whose keys are not where all others have them.
SHAPES = {
    "xread": "STREAMS {key} 0",
    "xreadgroup": "GROUP g c STREAMS {key} >",
    "evalsha": "0 1 {key}",
    "eval": "x 1 {key}",
    "fcall": "f 1 {key}",
    "memory|usage": "{key}",
    "sintercard": "1 {key}",
}


def key_of(sample: str) -> str:
    """The whole key of a sample."""
    others = {"another namespace": "{other}:task:x1", "no namespace": "x1"}
    return others.get(sample) or KEYS.of(SAMPLES[sample])


async def commands_of(admin: Redis) -> dict[str, int]:
    """Every command and subcommand of the server, with its number of words."""
    ((*listed,),) = [await _raw(admin, ("COMMAND",))]
    found: dict[str, int] = {}
    for name, arity, *rest in listed:
        found[name.decode()] = abs(arity)
        found |= {one[0].decode(): abs(one[1]) for one in (rest[7] if len(rest) > 7 else ())}
    return found


async def _raw(admin: Redis, words: tuple[str, ...]) -> Any:
    return (await send_and_read(admin, [pack(words)]))[0]


def words_of(command: str, arity: int, key: str) -> list[str]:
    """A call of a command with a key."""
    words = command.split("|")
    if command in SHAPES:
        return [*words, *SHAPES[command].format(key=key).split(" ")]
    return [*words, *[key] * max(1, arity - len(words))] if arity > len(words) else words


async def permitted(admin: Redis, user: str, calls: Iterable[tuple[str, int, str]]) -> set[tuple[str, str]]:
    """The commands, each with its sample of a key, that the server would let a user send."""
    listed = list(calls)
    found: set[tuple[str, str]] = set()
    for start in range(0, len(listed), 2_000):
        chunk = listed[start : start + 2_000]
        packed = [pack(("ACL", "DRYRUN", user, *words_of(name, arity, key_of(one)))) for name, arity, one in chunk]
        answers = await send_and_read(admin, packed)
        found |= {(name, one) for (name, _, one), answer in zip(chunk, answers, strict=True) if answer == b"OK"}
    return found


@pytest.mark.guarantee("redis-users")
@pytest.mark.parametrize("role", MAY)
async def test_a_role_may_do_nothing_else(users: Users, role: Role) -> None:
    """Every command of the server on a key of every family, of another agent and of another namespace."""
    user = user_name(role, SETTINGS.namespace, OWN if role is Role.AGENT else None)
    commands = await commands_of(users.admin)
    assert len(commands) > 300
    reachable = [
        next(one for one, key in SAMPLES.items() if key and re.fullmatch(pattern, key)) for _, pattern in MAY[role]
    ]
    anywhere = await permitted(
        users.admin, user, ((name, arity, one) for name, arity in commands.items() for one in reachable)
    )
    sendable = {name for name, _ in anywhere} - ALWAYS - KEYLESS[role]
    assert sendable == {name for names, _ in MAY[role] for name in names}
    assert {name for name, _ in anywhere} >= KEYLESS[role]

    found = await permitted(users.admin, user, ((name, commands[name], one) for name in sendable for one in SAMPLES))
    expected = {
        (name, one)
        for names, pattern in MAY[role]
        for name in names
        for one, key in SAMPLES.items()
        if key and re.fullmatch(pattern, key)
    }
    assert found == expected


#: What no worker needs.
FORBIDDEN = (
    "acl", "config|set", "config|rewrite", "shutdown", "keys", "script|flush", "script|kill", "function", "module",
    "debug", "replicaof", "migrate", "monitor", "eval", "subscribe", "client|kill", "client|list", "save", "bgsave",
    "cluster|failover", "scan", "select", "swapdb", "dump", "restore", "rename", "flushall", "flushdb",
)  # fmt: skip


@pytest.mark.guarantee("redis-users")
async def test_workers_own_their_namespace_and_nothing_besides(users: Users) -> None:
    """Every family of it, by reading and by writing; no other key, and nothing of the server."""
    user = user_name(Role.WORKER, SETTINGS.namespace)
    commands = await commands_of(users.admin)
    found = await permitted(
        users.admin, user, ((name, commands[name], one) for name in ("del", "exists") for one in SAMPLES)
    )
    assert {one for _, one in found} == {one for one, key in SAMPLES.items() if key}
    everything = await permitted(users.admin, user, ((name, arity, "clock") for name, arity in commands.items()))
    sent = {name for name, _ in everything} - ALWAYS
    assert not {name for name in sent for one in FORBIDDEN if name == one or name.startswith(f"{one}|")}
    assert {"evalsha", "script|load", "xreadgroup", "client|setname"} <= sent


@pytest.mark.guarantee("redis-users-suffice")
@pytest.mark.parametrize("users", ["valkey", pytest.param("redis7", marks=pytest.mark.long)], indirect=True)
async def test_the_whole_system_works_with_its_users(users: Users, tmp_path: Path, unused_port: int) -> None:
    """Each process under its own: tasks, messages, tokens, drain, replay, HTTP, commands; nothing is refused."""
    async with (
        cell_of(users) as operator,
        Client(users.url("client"), settings=SETTINGS) as client,
    ):
        heard: asyncio.Queue[str] = asyncio.Queue()
        agents = [
            Agent(one, url=users.url("agent", one), settings=SETTINGS, token=await operator.admin.enrol(one))
            for one in (OWN, OTHER)
        ]
        broken = [True]
        for agent in agents:

            @agent.task("ocr")
            async def ocr(task: object) -> str:
                return "read"

            @agent.task("hang")
            async def hang(task: object) -> None:
                await heard.put("hanging")
                await asyncio.Event().wait()

            @agent.task("break")
            async def break_(task: object) -> str:
                if broken:
                    raise ValueError("as told")
                return "whole"

            @agent.on_message
            async def hear(message: object) -> None:
                await heard.put("message")

        async with agents[0], agents[1]:
            handles = await client.submit_many([{"task_type": "ocr"}] * 20)
            assert [await handle.result(timeout=PATIENT_S) for handle in handles] == ["read"] * 20
            assert await (await client.submit("ocr", notify=False)).result(timeout=PATIENT_S) == "read"
            assert (await client.task(handles[0].task_id)).agent_id in {OWN, OTHER}
            with pytest.raises(TaskNotFound):
                await client.handle("nobody-s").result(timeout=PATIENT_S)
            hanging = await client.submit("hang")
            assert await asyncio.wait_for(heard.get(), PATIENT_S) == "hanging"
            await hanging.cancel(timeout=PATIENT_S)

            receipt = await client.send(OWN, {"say": "hello"}, timeout=PATIENT_S)
            assert await asyncio.wait_for(heard.get(), PATIENT_S) == "message"
            assert (await client.message(receipt.message_id)).receiver_id == OWN
            assert (await client.broadcast({"say": "all"}, timeout=PATIENT_S)).delivered == 2
            assert [await asyncio.wait_for(heard.get(), PATIENT_S) for _ in agents] == ["message"] * 2
            assert (await client.ping(OWN, timeout=PATIENT_S))["agent_id"] == OWN
            await agents[0].links.set_master(OTHER)
            await agents[0].send(OTHER, protocol="hierarchical", timeout=PATIENT_S)
            assert await asyncio.wait_for(heard.get(), PATIENT_S) == "message"
            assert (await agents[0].links.read()).master == OTHER
            wanted = {"capabilities": ["ocr"], "labels": {}}
            found = await agents[0].request("coordinator", wanted, message_type="discovery", timeout=PATIENT_S)
            assert {one["agent_id"] for one in found["agents"]} == {OWN, OTHER}
            with pytest.raises(TokenMissing):
                await client.send(OWN, sender_id=OTHER, timeout=PATIENT_S)
            with pytest.raises(AgentNotFound):
                await client.send("nobody", message_id="dead", timeout=PATIENT_S)

            assert await operator.admin.drain(OWN, timeout=PATIENT_S) is AgentStatus.DRAINING
            assert await operator.admin.resume(OWN, timeout=PATIENT_S) is AgentStatus.ACTIVE
            failed = await client.submit("break", retry={"max_attempts": 1})
            with pytest.raises(TaskFailed):
                await failed.result(timeout=PATIENT_S)
            broken.clear()
            assert await (await operator.admin.retry(failed.task_id, timeout=PATIENT_S)).result(PATIENT_S) == "whole"
            with pytest.raises(AgentNotFound):
                await operator.admin.replay("message", "dead", timeout=PATIENT_S)
            await operator.admin.set_setting("health_threshold", 0.4, timeout=PATIENT_S)
            token, (key, _) = await operator.admin.enrol("web"), await operator.admin.create_key("admin")
            await _over_http(users, unused_port + 1, handles[0].task_id, token, key)
            codes = dict(zip(COMMANDS, await _commands(users.url("operator"), *COMMANDS), strict=True))
            assert {line: code for line, code in codes.items() if code != "0"} == {"tasks explain by-http": "4"}
        assert (await operator.agent(OWN)).status is AgentStatus.INACTIVE
        refused = await queries.get_counters(users.admin, KEYS)
        assert refused["tokens_refused"] == 3, "a message in another's name; a registration and a reading over HTTP"
        denied = {(one[b"username"].decode(), one[b"object"].decode()) for one in await users.denials()}
        looked_at = KEYS.inbox(OWN, "normal")  # has the message been read? A client may not know, and goes on without
        assert denied == {
            (user_name(Role.CLIENT, SETTINGS.namespace), looked_at),
            (user_name(Role.GATEWAY, SETTINGS.namespace), "scan"),  # /system?ledger=1 says that it could not check that
        }


@asynccontextmanager
async def cell_of(users: Users) -> AsyncIterator[Client]:
    """A worker of each kind under a user of its own, and a client of an operator."""
    async with AsyncExitStack() as stack:
        for kind in ("registry", "distributor", "router"):
            await stack.enter_async_context(running_cell(users.url("worker", kind), SETTINGS, [kind]))
        yield await stack.enter_async_context(Client(users.url("operator"), settings=SETTINGS))


async def _over_http(users: Users, port: int, task_id: str, token: str, key: str) -> None:
    """Each route of the gateway, which has a user of its own and wants credentials."""
    http = HttpCaller(port)
    security = {"COORD_GATEWAY_SECURITY": "on", "COORD_GATEWAY_JWT_SECRET": PASSWORD * 2}
    process = await _start("gateway", "--port", str(port), "--redis-url", users.url("gateway"), **security)
    admin = {"X_API_Key": key}
    try:
        await wait_until(http.is_ready, "the gateway has found Redis", PATIENT_S)
        body = {"agent_id": "web", "agent_type": "worker"}
        assert (await http.post("/agents/register", body, **admin)).body["code"] == "token_missing"
        bearer = {"Authorization": f"Bearer {token}"}
        assert (await http.post("/agents/register", body, **bearer)).status == 200
        beat = {"status": "busy", "load_metrics": {"cpu": 0.1}}
        assert (await http.post("/agents/web/heartbeat", beat, **bearer)).status == 200
        data = {"task_type": "unknown", "required_capabilities": ["unknown"], "task_id": "by-http"}
        assert (await http.post("/tasks/submit", {"task_data": data}, **admin)).status == 200
        paths: tuple[str, ...] = (
            "/agents/web",
            f"/tasks/{task_id}",
            f"/tasks/{task_id}/status",
            "/tasks/by-http/explain",
            "/pools",
        )
        rules_of_placement = "/load-balancer/strategy"
        assert (await http.put(rules_of_placement, {"strategy": "random"}, **admin)).status == 200
        paths = (*paths, "/health", "/metrics/summary", rules_of_placement, f"{rules_of_placement}/history")
        paths = (*paths, *await _contract_over_http(http, admin, bearer))
        for path in paths:
            assert (await http.get(path, **admin)).status == 200, path
        findings = {one["code"]: one for one in (await http.get("/system", **admin)).body["findings"]}
        assert findings["permissions"]["level"] == "ok", findings["permissions"]
        checked = {one["code"]: one for one in (await http.get("/system?ledger=1", **admin)).body["findings"]}
        assert "for the check of the ledger" in checked["permissions"]["message"]
        metrics = (await http.text("/metrics", **admin)).body
        for name in ("coord_stream_entries", "coord_stream_pending"):
            assert set(re.findall(rf'^{name}{{group="\w+",stream="(.+)"}}', metrics, re.MULTILINE)) == {*STREAM_FACTS}
        assert all(name in metrics for name in ("coord_dead_letters{", "coord_open_requests ", "_memory_used_bytes "))
        login = (await http.post("/auth/login", {"api_key": key})).body
        assert (await http.post("/auth/refresh", {"refresh_token": login["refresh_token"]})).status == 200
        ticket = (await http.post("/auth/ticket", **admin)).body["ticket"]
        source = await EventSource(f"/events?last_event_id=0&ticket={ticket}").connect(port)
        await source.hears("by-http")
        await source.disconnect()
        made = (await http.post("/auth/api-key/generate", {"role": "client"}, **admin)).body
        assert (await http.delete(f"/auth/api-key/{made['key_id']}", **admin)).status == 200
    finally:
        process.terminate()
        await asyncio.wait_for(process.communicate(), PATIENT_S)


async def _contract_over_http(http: HttpCaller, admin: Mapping[str, str], bearer: Mapping[str, str]) -> tuple[str, ...]:
    """Each write of the rest of the contract, with a key; return the paths that read."""
    sent = {"receiver_id": "web", "message_type": "direct", "payload": {}, "message_id": "m-http"}
    task = {"task_data": {"task_id": "in-batch", "required_capabilities": ["unknown"]}}
    writes: tuple[tuple[str, Any, int], ...] = (
        ("/tasks/batch", {"tasks": [task]}, 200),
        ("/tasks/in-batch/cancel", None, 200),
        ("/tasks/in-batch/retry", None, 409),
        ("/tasks/queues/low/clear", None, 200),
        ("/messages/send", sent, 200),
        ("/messages/broadcast", {"message_type": "coordination", "payload": {}, "message_id": "all-http"}, 200),
        ("/peers/add?agent_id=web&peer_id=ocr-1", None, 200),
        ("/peers/remove?agent_id=web&peer_id=ocr-1", None, 200),
        ("/agents/ocr-1/subordinates/web", None, 200),
    )
    for path, body, status in writes:
        for _ in range(2):
            answer = await http.post(path, body, Idempotency_Key=f"acl {path}"[:60], **admin)
            assert answer.status == status, (path, answer.body)
    assert (await http.delete("/agents/ocr-1/subordinates/web", **admin)).status == 200
    dead = {**sent, "receiver_id": "nobody", "message_id": "dead-http"}
    assert (await http.post("/messages/send", dead, **admin)).status == 404
    assert (await http.get("/messages/dead", **admin)).body["messages"][0]["message_id"] == "dead-http"
    assert (await http.post("/messages/dead-http/replay", **admin)).body["code"] == "agent_not_found"
    assert (await http.post("/messages/dead/purge", {"older_than": 0}, **admin)).body["purged"] >= 1
    assert (await http.post("/messages/m-http/read", **admin)).body["code"] == "token_missing"
    assert (await http.post("/messages/m-http/read", {"agent_id": "web"}, **bearer)).status == 200
    change = {"status": "active", "load_metrics": {"cpu": 0.2}}
    assert (await http.put("/agents/web/status", change, **bearer)).status == 200
    return (
        "/agents?limit=5", "/registry/stats", "/agents/capability/ocr", "/tasks?limit=100", "/tasks/status",
        "/tasks/queues", "/tasks/queues/stats", "/load-balancer/stats", "/messages/history?receiver_id=web",
        "/messages/history", "/messages/m-http", "/messages/all-http", "/peers", "/peers/web",
        "/agents/web/subordinates", "/messages/conversations/m-http", "/",
    )  # fmt: skip


COMMANDS = (
    "ps",
    "queues",
    "queues --reasons",
    "pools",
    "events --since 0 --no-follow",
    "fsck",
    "tasks list",
    "tasks explain by-http",
    "agents list",
    "agents show ocr-1",
    "agents rotate ocr-2",
    "agents tokens",
    "keys create",
    "keys list",
    "messages list",
    "dead list",
    "dead purge message --older-than 0s",
    "strategy set round_robin",
    "strategy history",
    "settings show",
)


#: Runs the commands in its arguments, one after the other: to start Python for each takes longer.
RUN = """
import sys
from coord.cli.app import app
from coord.errors import CoordError

for line in sys.argv[2:]:
    try:
        code = app([*line.split(" "), "--redis-url", sys.argv[1]], standalone_mode=False) or 0
    except CoordError as error:
        code = error
    print("ended", code, line, flush=True)
"""


async def _commands(url: str, *lines: str) -> list[str]:
    """Run commands; return the exit code or the error of each."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", RUN, url, *lines, stdout=PIPE, stderr=PIPE)
    out, error = await asyncio.wait_for(process.communicate(), 60)
    assert "NOPERM" not in error.decode()
    ended = [line.split(" ", 1)[1] for line in out.decode().split("\n") if line.startswith("ended ")]
    assert len(ended) == len(lines), error.decode()
    return [end.removesuffix(f" {line}") for end, line in zip(ended, lines, strict=True)]


async def _start(*words: str, **environ: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "coord.cli", *words, stdout=PIPE, stderr=PIPE, env=os.environ | environ
    )


@pytest.mark.parametrize("users", ["valkey", pytest.param("redis7", marks=pytest.mark.long)], indirect=True)
async def test_a_user_is_set_by_a_command(users: Users, tmp_path: Path) -> None:
    """With a password that is printed once, or one of a file; a user who may not set any is told the next step."""
    server = f"redis://127.0.0.1:{users.port}/0"
    made = await _start("acl", "agent", "new", "--apply", "--redis-url", server)
    out, error = await asyncio.wait_for(made.communicate(), 60)
    assert made.returncode == 0, error.decode()
    assert "ACL SAVE" in error.decode()
    url = f"redis://coord-agent-new:{out.decode().strip()}@127.0.0.1:{users.port}/0"
    async with connect(url, SETTINGS) as redis:
        assert await redis.ping()

    (tmp_path / "password").write_text("a-password-that-is-long\n")
    apply = "acl agent new --apply"
    lines = (f"{apply} --password-file {tmp_path / 'password'}", f"{apply} --keep-password")
    assert await _commands(server, *lines) == ["0", "0"]
    async with connect(f"redis://coord-agent-new:a-password-that-is-long@127.0.0.1:{users.port}/0", SETTINGS) as redis:
        assert await redis.ping()

    (refused,) = await _commands(users.url("operator"), "acl agent newer --apply")
    assert "the user 'coord-operator' may not set users" in refused or "this user may not set users" in refused
    assert "connect as an administrator" in refused
    assert "coord-agent-newer" not in {one.decode() for one in await users.admin.execute_command("ACL", "USERS")}


@pytest.mark.parametrize("users", ["valkey"], indirect=True)
async def test_operators_hand_out_tokens(users: Users, tmp_path: Path) -> None:
    """Printed once or written to a file of one's own, which a refused request leaves alone; and a program uses it."""
    file = tmp_path / "a1.token"
    async with cell_of(users) as operator:
        lines = (
            f"agents enrol a1 --into {file}",
            f"agents enrol a1 --into {file}",
            "agents rotate unknown",
            f"agents enrol a2 --into {tmp_path / 'nowhere' / 'a2.token'}",
            f"agents rotate a1 --grace 0 --into {file}",
            "agents revoke a1",
        )
        codes = await _commands(users.url("operator"), *lines[:4])
        assert codes[0] == "0"
        assert "has a token already: rotate or revoke it" in codes[1]
        assert "has no token: enrol it first" in codes[2]
        assert "name a file in a folder that you may write to" in codes[3]
        assert (file.stat().st_mode & 0o777, [one.name for one in tmp_path.glob("*.new")]) == (0o600, [])
        token = file.read_text().strip()
        current = await users.admin.hget(KEYS.token("a1"), "current")
        assert current == digest_of_token(token).encode()
        assert not await users.admin.exists(KEYS.token("a2"))
        assert await _commands(users.url("operator"), *lines[4:]) == ["0", "0"]
        assert file.read_text().strip() != token
        assert not await users.admin.hexists(KEYS.token("a1"), "current")

        command = ("agent", "--id", OWN, "--capability", "shout", "--token-file", str(tmp_path / "own"))
        (tmp_path / "own").write_text(await operator.admin.enrol(OWN))
        program = await _start(*command, "--redis-url", users.url("agent", OWN), "--", "tr", "a-z", "A-Z")
        async with Client(users.url("client"), settings=SETTINGS) as client:
            assert await (await client.submit("shout", {"a": 1})).result(timeout=PATIENT_S) == {"A": 1}
        program.terminate()
        await asyncio.wait_for(program.communicate(), PATIENT_S)
        assert program.returncode == 0
        assert "tokens_refused" not in await queries.get_counters(users.admin, KEYS)


@pytest.mark.guarantee("audit")
@pytest.mark.parametrize("users", ["valkey"], indirect=True)
async def test_a_client_writes_nothing_into_the_audit(users: Users) -> None:
    """⚠ A command under the user of a client cancels as clients do; a name in its requests has no effect."""
    async with cell_of(users) as operator, Client(users.url("client"), settings=SETTINGS) as client:
        for task_id in ("t1", "t2", "t3"):
            await client.submit("unknown", task_id=task_id)
        assert await _commands(users.url("client"), "tasks cancel t1") == ["0"]
        token = acting_for.set("ann@host")
        try:
            assert await client.cancel("t2", timeout=PATIENT_S) == "accepted"
            assert await client.cancel_many(["t2"], timeout=PATIENT_S) == {"t2": "accepted"}
            assert (await operator.admin.audit()).entries == ()
            assert await operator.cancel("t3", timeout=PATIENT_S) == "accepted"
        finally:
            acting_for.reset(token)
        forged: dict[Any, Any] = {"type": "task.cancel_requested", "data": '{"task_id":"t3"}', "by": "ann@host"}
        async with connect(users.url("client"), SETTINGS) as redis:
            await redis.xadd(KEYS.of("in:requests"), forged)
            for stream in ("in:control:distributor", "log:audit"):
                with pytest.raises(NoPermissionError):
                    await redis.xadd(KEYS.of(stream), forged)

        async def is_read() -> bool:
            return not await users.admin.xlen(KEYS.of("in:requests"))

        await wait_until(is_read, "the request is handled", PATIENT_S)
        (entry,) = (await operator.admin.audit()).entries
        assert (entry.action, entry.target, entry.by, entry.outcome) == ("tasks.cancel", "t3", "ann@host", "cancelled")


async def test_the_connected_user_is_not_changed(users: Users) -> None:
    """An administrator that set itself would lose its own permissions."""
    with pytest.raises(ConfigError, match="is connected"):
        await set_user(users.admin, "default", PASSWORD, ["+ping"])
