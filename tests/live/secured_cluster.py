"""A cluster with every protection switched on, as a process whose output a test can read."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc

import baton
from baton.config.schema import AccessSection
from baton.harness.process_cluster import ProcessCluster, plans
from baton.links.keys import new_secret, peer_keys
from baton.logs import set_up
from tests.certificates import Pair, self_signed

ROOT = Path(__file__).resolve().parents[2]
MAX_PROMPT_TOKENS, MAX_STREAMS = 120, 2
PEERS = ("router", "gateway-0", "mixed-0")
TOKENS = {"acme": ["generate"], "rival": ["generate"], "operator": ["admin"]}


async def serve(checkpoint: str, folder: Path) -> None:
    """Serve until standard input ends. The folder holds server.crt, server.key, client.crt and tokens.toml."""
    set_up("router")
    secret = new_secret()
    access = AccessSection(
        tls_certificate=str(folder / "server.crt"),
        tls_key=str(folder / "server.key"),
        client_ca=str(folder / "client.crt"),
        tokens_file=str(folder / "tokens.toml"),
        max_prompt_tokens=MAX_PROMPT_TOKENS,
        max_message_mib=1,
        max_streams_per_tenant=MAX_STREAMS,
    )
    router_config, worker_config = plans(checkpoint, 256, 200, chunk_tokens=64)
    router_config = replace(router_config, access=access, link_secret=secret)
    (folder / "secrets.json").write_text(json.dumps([secret, *(peer_keys(secret, name).secret for name in PEERS)]))
    print(router_config, worker_config, flush=True)
    async with ProcessCluster(router_config, worker_config, {"mixed": 1}) as cluster:
        links = cluster.router.driver.link, cluster.gateway.driver.workers, cluster.gateway.driver.router
        print(cluster, cluster.router, cluster.gateways, *links, *map(vars, links), flush=True)
        (folder / "ports.new").write_text(json.dumps([cluster.gateway.port, cluster.router.admin_port]))
        (folder / "ports.new").rename(folder / "ports.json")
        await asyncio.to_thread(sys.stdin.read)


def token_of(tenant: str) -> str:
    """The token of a tenant."""
    return f"token-of-{tenant}-which-is-secret"


def entries_for(tokens: dict[str, list[str]]) -> str:
    """The tokens file for these tenants and their roles."""
    return "\n".join(
        f'[[token]]\nsha256 = "{sha256(token_of(tenant).encode()).hexdigest()}"\ntenant = "{tenant}"\nroles = {roles}'
        for tenant, roles in tokens.items()
    )


@dataclass(eq=False)
class Secured:
    """The cluster's folder, addresses and process."""

    folder: Path
    server: Pair
    caller: Pair
    process: subprocess.Popen[bytes]
    errors: list[str] = field(default_factory=list)

    @property
    def addresses(self) -> list[str]:
        return [f"127.0.0.1:{port}" for port in json.loads((self.folder / "ports.json").read_text())]

    @property
    def output(self) -> str:
        return (self.folder / "output").read_text()

    def files(self, **changed: Any) -> dict[str, Any]:
        """The TLS options of a client, complete unless changed."""
        given = {
            "tls_ca": self.server.certificate,
            "tls_certificate": self.caller.certificate,
            "tls_key": self.caller.key,
            **changed,
        }
        return {key: str(value) for key, value in given.items() if value is not None}

    def client(self, tenant: str = "acme", **changed: Any) -> baton.Client:
        return baton.Client(self.addresses[0], token=token_of(tenant), **self.files(**changed))

    def admin(self, tenant: str = "operator") -> baton.Admin:
        return baton.Admin(self.addresses[1], token=token_of(tenant), **self.files())

    def credentials(self) -> grpc.ChannelCredentials:
        files = self.files()
        return grpc.ssl_channel_credentials(
            *(Path(files[name]).read_bytes() for name in ("tls_ca", "tls_key", "tls_certificate"))
        )


@contextlib.contextmanager
def started(checkpoint: Path, folder: Path) -> Iterator[Secured]:
    """The cluster in a process of its own, with new certificates and the tokens of `TOKENS`."""
    server, caller = self_signed(folder, "server"), self_signed(folder, "client")
    (folder / "tokens.toml").write_text(entries_for(TOKENS))
    command = [sys.executable, "-m", "tests.live.secured_cluster", str(checkpoint), str(folder)]
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=output, stderr=output)
    made = Secured(folder, server, caller, process)
    try:
        deadline = time.monotonic() + 90
        while not (folder / "ports.json").exists():
            assert process.poll() is None, made.output
            assert time.monotonic() < deadline, made.output
            time.sleep(0.05)
        yield made
    finally:
        process.communicate(timeout=30)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], Path(sys.argv[2])))
