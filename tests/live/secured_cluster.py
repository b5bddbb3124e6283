"""A cluster with everything that guards one, as a process whose output a test can read."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path

from baton.config.schema import AccessSection
from baton.harness.process_cluster import ProcessCluster, plans
from baton.logs import set_up
from baton.router.access.zap_authenticator import new_link_keys

MAX_PROMPT_TOKENS, MAX_STREAMS = 120, 2


async def serve(checkpoint: str, folder: Path) -> None:
    """Serve until standard input ends. The folder holds server.crt, server.key, client.crt and tokens.toml."""
    set_up("router")
    keys = new_link_keys()
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
    router_config = replace(router_config, access=access, link_keys=keys.router)
    worker_config = replace(worker_config, link_keys=keys.worker)
    (folder / "secrets.json").write_text(json.dumps([keys.router.secret, keys.worker.secret]))
    print(router_config, worker_config, keys, flush=True)
    async with ProcessCluster(router_config, worker_config, {"mixed": 1}) as cluster:
        print(cluster, cluster.router, cluster.router.driver.link, vars(cluster.router.driver.link), flush=True)
        (folder / "ports.new").write_text(json.dumps([cluster.router.port, cluster.router.admin_port]))
        (folder / "ports.new").rename(folder / "ports.json")
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], Path(sys.argv[2])))
