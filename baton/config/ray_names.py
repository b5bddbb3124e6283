"""Names under which a cluster's actors are found in Ray."""

NAMESPACE = "baton"
ROUTER = "router"
FIRST_WORDS = "This is worker {}.\n"  # Begins a worker's log and identifies it
