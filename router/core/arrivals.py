"""A request as it enters the router: its pages named, its output predicted. Pure."""

from __future__ import annotations

from baton.gateway.core.stream import OutputStream
from baton.protocol.prefix_hash import page_hashes, page_keys, tenant_root
from baton.protocol.request import Request
from baton.router.core.latency import Latency
from baton.router.core.live_request import LiveRequest
from baton.router.policy.cluster_state import ClusterState
from baton.router.policy.output_length import OutputLength, chain_nodes


def name_pages(request: Request, state: ClusterState) -> tuple[int, ...]:
    """The keys of a prompt's full pages; all workers have the same model and page size."""
    view = next(iter(state.workers.values()), None)
    if view is None:
        return ()
    layout = view.info.endpoint.layout
    root = tenant_root(layout.model_id, request.tenant, state.share_prefixes)
    return page_keys(page_hashes(request.prompt, layout.page_size, root))


def open_request(
    request: Request, stream: OutputStream, state: ClusterState, output_length: OutputLength, now: float
) -> LiveRequest:
    """A request as it enters the router: its pages named, its output predicted.

    Without a worker the page size is unknown: pages are named when one registers.
    """
    keys = name_pages(request, state)
    nodes = chain_nodes(keys, next(iter(state.workers.values())).info.page_size) if keys else ()
    prediction = output_length.predict(nodes, request.tenant, len(request.prompt), request.sampling.max_tokens)
    return LiveRequest(request, stream, Latency(now), keys, prediction)
