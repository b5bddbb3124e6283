"""How the cluster's actors are found in a Ray."""

NAMESPACE = "baton"
ROUTER = "router"
