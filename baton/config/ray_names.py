"""Names under which a cluster's actors are found in Ray."""

NAMESPACE = "baton"
ROUTER = "router"
GATEWAY = "gateway"  # Begins the name of each gateway: gateway-0, gateway-1, …
FIRST_WORDS = "This is worker {}."  # Begins a worker's log and identifies it
