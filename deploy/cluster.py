"""Starts a cluster: for `baton up`, and for the supervisor after the cluster's Ray has died."""

from __future__ import annotations

import os
import uuid
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from baton.access.credentials import Credentials
from baton.builtin_model import CHECKPOINT
from baton.config.access import check_access
from baton.config.devices import ROLES
from baton.config.facts import ModelFacts
from baton.config.placement import demand
from baton.config.resolve import Resolved, resolve
from baton.config.schema import BatonConfig
from baton.deploy.ending import Progress, clear, end_started
from baton.deploy.local_ray import LocalRay, loopback, planned_ray, start_local_ray
from baton.deploy.machine import machine_facts
from baton.deploy.preflight import check_start, ray_host
from baton.deploy.processes import NotedProcess, this_process
from baton.deploy.recovery import restored_pools
from baton.deploy.running import RunningCluster, claim_note, home, remove_note, running_cluster, update_note
from baton.deploy.supervisor import start_supervisor
from baton.engine.checkpoint import check_weights, read_config, read_sampling_defaults, resolve_model
from baton.engine.model_config import check_ranks
from baton.engine.tokenizer import check_tokenizer
from baton.gateway.template_files import read_chat_template
from baton.kv_transfer.transports import check_transport
from baton.protocol.errors import BatonError, ConfigError
from baton.router.policy.policies import check_policy
from baton.tracing.start import check_tracing

if TYPE_CHECKING:
    from baton.deploy.launcher import Started

BUILTIN = "built-in"


def resolve_here(config: BatonConfig) -> Resolved:
    """The configuration with every "auto" resolved for this machine and the model.

    Raises `ConfigError` for an unknown policy or transport, an unusable model, ranks among which it cannot be divided,
    credentials that cannot be read, and traces without their libraries.
    """
    check_policy(config.router.policy)
    check_transport(config.engine.transport)
    check_tracing(config.tracing)
    config = _with_whole_paths(config)
    folder = resolve_model(config.model.path).absolute() if config.model.path else CHECKPOINT
    model = read_config(folder)
    for ranks in sorted({demand(config, role).ranks for role in ROLES}):  # `baton scale` may fill an empty pool
        check_ranks(model, ranks)
    check_weights(folder, model)
    check_tokenizer(folder)
    facts = ModelFacts(
        # Each node fetches a model of the hub itself: the folder on this machine does not exist on the others.
        path=config.model.path
        if config.model.path and not Path(config.model.path).expanduser().is_dir()
        else str(folder),
        name=config.model.path or BUILTIN,
        context_tokens=model.context_tokens,
        kv_values_per_token=2 * model.num_layers * model.num_kv_heads * model.head_dim,
        sampling=read_sampling_defaults(folder) if config.model.generation_config == "auto" else {},
        num_parameters=model.num_parameters,
        layer_values=model.layer_values,
        vocab_size=model.vocab_size,
        num_kv_heads=model.num_kv_heads,
        template_text=_template_text(config.model.chat_template, folder),
        context_limit=model.context_limit,
    )
    resolved = resolve(config, machine_facts(), facts)
    check_access(config.access, config.router.admin_host)
    Credentials(config.access)  # An error in these files is reported before anything is started.
    return resolved


def _template_text(path: str, folder: Path) -> str:
    """The text of the chat template that the operator gives; "" without one.

    Raises `ConfigError` for a file that cannot be read and for invalid syntax.
    """
    try:
        text = Path(path).expanduser().read_text() if path else ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"model.chat_template: {path} cannot be read: {error}.") from None
    read_chat_template(folder, text)
    return text


def _with_whole_paths(config: BatonConfig) -> BatonConfig:
    """With absolute paths: the cluster's processes do not run in the folder where the command line was typed."""
    access = config.access
    keys = ("tls_certificate", "tls_key", "client_ca", "tokens_file")
    whole = {key: str(Path(path).absolute()) for key in keys if (path := getattr(access, key))}
    router = config.router
    state = {"state_file": str(Path(router.state_file).absolute())} if router.state_file else {}
    changed = {"access": access.model_copy(update=whole), "router": router.model_copy(update=state)}
    return config.model_copy(update=changed)


def up(
    resolved: Resolved, report: Progress, folder: Path | None = None, ends_with: NotedProcess | None = None
) -> RunningCluster:
    """Start Ray (unless $RAY_ADDRESS names one), router, gateways and workers; on any failure nothing stays behind.

    The cluster's note goes to `folder`, by default the one that every command of this user reads. The remains of a
    dead cluster are removed first. A cluster that `ends_with` a process is not restarted when its Ray dies. Raises
    `ConfigError` when a cluster is running, or when this one cannot start.
    """
    folder = folder or home()
    clear(folder, report)
    check_start(resolved.config)
    existing = os.environ.get("RAY_ADDRESS", "")
    ray = LocalRay(existing, "") if existing else planned_ray(host=ray_host())
    mine = RunningCluster(
        *("", (), ray.address, ray.folder),
        id=uuid.uuid4().hex,
        state="starting",
        changed_by=ends_with or this_process("baton up"),
        ends_with=ends_with,
    )
    claim_note(mine, folder)
    try:
        cluster = _start(mine, resolved, report, folder)
        if ray.folder and ends_with is None:
            start_supervisor(folder, cluster.id)
        return cluster
    except BaseException as reason:
        report("ray", "ending what was started")
        try:
            end_started(mine)
        except ConfigError as left:  # The note stays, so that `baton down` can try again.
            why = reason.message if isinstance(reason, BatonError) else "The start was interrupted."
            raise ConfigError(f"{why} {left.message}") from reason
        remove_note(mine.id, folder)
        raise


def restart(folder: Path, cluster_id: str, report: Progress) -> RunningCluster:
    """Restart the noted cluster after its Ray has died: same ports, pools and configuration.

    Raises `ConfigError` when the note belongs to another cluster by now, or when it cannot start; the note stays.
    """
    before = running_cluster(folder)
    if before is None or before.id != cluster_id or before.state == "ending":
        raise ConfigError("The cluster was ended by another command.")
    ray = planned_ray(host=ray_host())
    mine = replace(before, state="starting", changed_by=this_process("supervisor"), vital=(), ray_address=ray.address)
    update_note(mine, folder)  # Still with the old Ray's folder: `baton down` between these lines finds it.
    LocalRay(before.ray_address, before.ray_folder).stop()
    mine = replace(mine, ray_folder=ray.folder)
    update_note(mine, folder)
    try:
        return _start(mine, _with_noted_pools(before), report, folder)
    except BaseException:
        ray.stop()
        raise


def _start(mine: RunningCluster, resolved: Resolved, report: Progress, folder: Path) -> RunningCluster:
    """Start the cluster that the note announces, and note its addresses."""
    existing = not mine.ray_folder
    report("ray", f"connecting to {mine.ray_address}" if existing else "starting")
    ray = LocalRay(mine.ray_address, mine.ray_folder)
    if not existing:
        start_local_ray(planned=ray)
    from baton.deploy.launcher import start_cluster
    from baton.deploy.ray_connection import connected, gcs_address

    report("ray", "connecting")
    with connected(ray):
        if existing and "://" not in ray.address:
            mine = replace(mine, ray_address=gcs_address())  # Unlike "auto", this address can be probed.
            update_note(mine, folder)
        report("ray", f"ready at {mine.ray_address}")
        # Our own Ray has this node only. In another Ray, workers may be on nodes that cannot reach loopback.
        started = start_cluster(resolved, report, mine.prefix, worker_host="" if existing else loopback())
    cluster = replace(
        mine,
        address=started.addresses[0],
        gateway_addresses=tuple(started.addresses),
        http_address=started.http_address,
        workers=tuple(started.workers),
        worker_address=started.worker_address,
        admin_address=started.admin_address,
        admin_http_address=started.admin_http_address,
        resolved=_with_ports(resolved, started).as_json(),
        state="up",
        changed_by=None,
        vital=() if existing else ray.vital(),
    )
    update_note(cluster, folder)
    return cluster


def _with_ports(resolved: Resolved, started: Started) -> Resolved:
    """With the ports that gateways and router listen on now, so that a restart uses the same ones."""
    port, admin_port = (int(each.rpartition(":")[2]) for each in (started.address, started.admin_address))
    http_port, admin_http_port = (
        int(address.rpartition(":")[2]) if address else "off"
        for address in (started.http_address, started.admin_http_address)
    )
    config = resolved.config
    sections = {
        "gateway": config.gateway.model_copy(update={"port": port, "http_port": http_port}),
        "router": config.router.model_copy(update={"admin_port": admin_port, "admin_http_port": admin_http_port}),
    }
    return replace(resolved, config=config.model_copy(update=sections))


def _with_noted_pools(cluster: RunningCluster) -> Resolved:
    """The noted configuration with the number of workers that each pool had at last: `baton scale` changes it."""
    resolved = Resolved.from_json(cluster.resolved)
    config = resolved.config
    counts = restored_pools(
        {pool: getattr(config.pools, pool) for pool in ("prefill", "decode", "mixed")}, cluster.workers
    )
    return replace(resolved, config=config.model_copy(update={"pools": config.pools.model_copy(update=counts)}))
