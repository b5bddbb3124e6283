#!/usr/bin/env bash
# Installs Prometheus and promtool where this is Debian and the user is root; elsewhere their tests are skipped.
set -euo pipefail
command -v promtool > /dev/null && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
  echo "Prometheus is not installed: its tests are skipped."
  exit 0
fi
export DEBIAN_FRONTEND=noninteractive
(apt-get update -qq && RUNLEVEL=1 apt-get install -y -qq --no-install-recommends prometheus) > /dev/null \
  || echo "Prometheus could not be installed: its tests are skipped."
