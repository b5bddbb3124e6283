"""Names under which a cluster's actors and processes are found."""

NAMESPACE = "baton"
ROUTER = "router"
GATEWAY = "gateway"  # Begins the name of each gateway: gateway-0, gateway-1, …
RAY_FOLDER = "BATON_RAY_FOLDER"  # Variable of every process of a Ray that Baton started: its folder, which ends with it
FIRST_WORDS = "This is worker {}."  # Begins a worker's log and identifies it
