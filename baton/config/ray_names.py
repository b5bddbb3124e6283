"""How the cluster's actors are found in a Ray."""

NAMESPACE = "baton"
ROUTER = "router"
FIRST_WORDS = "This is worker {}.\n"  # of a worker's log, by which it is found
