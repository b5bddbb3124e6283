#!/usr/bin/env bash
# Runs deploy/ray-local.yaml with real sshds:  [PYTHON=.venv/bin/python] deploy/try_ray_up.sh
#
#   1. unchanged, on 127.0.0.1:  ray up, baton up, a prompt, baton down, ray down
#   2. with a second machine as worker: Ray's autoscaler starts it over ssh, a prefill worker runs on the first machine,
#      a decode worker on the second, and KV pages cross over TCP
#
# The machines are namespaces (network, processes, mounts, host name) with a link between them. So port 22 is free, the
# sshds and their keys are invisible outside, `ray stop` cannot end another Ray, and nothing stays when the script ends.
# Needs root and Debian's openssh-server, openssh-client, rsync, iproute2 and util-linux; exit code 77 without them.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
script=$root/deploy/$(basename "${BASH_SOURCE[0]}")
python=$(command -v "${PYTHON:-python3}" || true)
namespaces=(unshare --net --pid --mount --uts --fork --mount-proc --kill-child)

skip() {
  echo "skipped: $1" >&2
  exit 77
}

# A machine with Baton "installed": this Python's libraries and this checkout's code. root's home is the folder $home,
# which sshd and ssh read from /etc/passwd.
set_up_machine() { # host name
  hostname "$1"
  ip link set lo up
  mount -t tmpfs none /run
  mount -t sysfs none /sys # UCX looks here for the network devices of this namespace
  mkdir -p /run/sshd "$home/baton-env/bin" "$home/ray"
  chmod 700 "$home"
  printf '#!/bin/sh\nexec "%s" -m ray.scripts.scripts "$@"\n' "$python" > "$home/baton-env/bin/ray"
  printf '#!/bin/sh\nexec "%s" -c "from baton.cli.main import main; main()" "$@"\n' "$python" > "$home/baton-env/bin/baton"
  chmod +x "$home"/baton-env/bin/*
  echo "export PATH=$home/baton-env/bin:\$PATH PYTHONPATH=$root RAY_TMPDIR=$home/ray RAY_USAGE_STATS_ENABLED=0" \
    > "$home/.bashrc"
  "$(command -v sshd)" -f /dev/null -h "$home/.ssh/host_key" -o PasswordAuthentication=no -o UsePAM=no
}

try() { # cluster file, Ray's address, arguments of `baton up`
  local file=$1 address=$2
  ray up --yes --no-config-cache "$file"
  RAY_ADDRESS=$address baton up --port 0 "${@:3}"
  baton status --json > "$home/status.json"
  baton generate Hello --max-tokens 8 --json > "$home/answer.json"
  baton down
  ray down --yes "$file"
}

case "${1:-}" in
  "")
    [ "$(id -u)" = 0 ] || skip "root is needed for namespaces and an sshd"
    for tool in sshd ssh ssh-keygen rsync ip unshare; do
      command -v "$tool" > /dev/null ||
        skip "$tool is missing: apt-get install openssh-server openssh-client rsync iproute2 util-linux"
    done
    [ -n "$python" ] && "$python" -c "import ray, grpc" || skip "${python:-python3} has no Ray: set PYTHON to Baton's"
    "${namespaces[@]}" true 2> /dev/null || skip "namespaces are not allowed here"
    home=$(mktemp -d /tmp/baton-ssh-XXXXXX)
    PYTHON=$python "${namespaces[@]}" "$script" first "$home" &
    machine=$!
    trap 'kill -9 $machine 2> /dev/null || true; rm -rf "$home"' EXIT
    trap 'exit 143' TERM INT HUP
    wait $machine
    exit
    ;;
  second)
    home=$2
    cp -r "$home/.ssh" /run/keys
    mount -t tmpfs none "$home" # the second machine's own disk
    cp -r /run/keys "$home/.ssh"
    set_up_machine second
    echo "--resources='{\"baton_decode\": 1}'" > "$home/baton-node"
    exec sleep infinity
    ;;
esac

# From here on: the first machine, process 1 of its namespaces.
home=$2
export HOME=$home TMPDIR=$home BATON_HOME=$home/.baton
sed "s#^\(root:[^:]*:[^:]*:[^:]*:[^:]*:\)[^:]*#\1$home#" /etc/passwd > "$home/passwd"
mount --bind "$home/passwd" /etc/passwd
mkdir -m 700 "$home/.ssh"
for key in host_key id_ed25519; do ssh-keygen -q -t ed25519 -N "" -f "$home/.ssh/$key"; done
cp "$home/.ssh/id_ed25519.pub" "$home/.ssh/authorized_keys"
set_up_machine first
. "$home/.bashrc"
cd "$root"

try deploy/ray-local.yaml 127.0.0.1:6379

"${namespaces[@]}" "$script" second "$home" &
until [ "$(readlink /proc/$!/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.1; done
ip link add first type veth peer name second netns $!
ip address add 10.99.0.1/24 dev first
ip link set first up
ip route add default via 10.99.0.2 # Ray takes a node's address from its default route
nsenter --net --target $! sh -c \
  "ip address add 10.99.0.2/24 dev second; ip link set second up; ip route add default via 10.99.0.1"
sed -e "s/head_ip: .*/head_ip: 10.99.0.1/; s/worker_ips: .*/worker_ips: [10.99.0.2]/; s/^cluster_name: .*/&-two/" \
  deploy/ray-local.yaml > "$home/two.yaml"
cat > "$home/two.toml" << END
[placement.prefill]
cpus = 1
env = { UCX_TLS = "tcp", UCX_NET_DEVICES = "first" }
[placement.decode]
resources = { baton_decode = 1 }
env = { UCX_TLS = "tcp", UCX_NET_DEVICES = "second" }
END
try "$home/two.yaml" 10.99.0.1:6379 --config "$home/two.toml" --policy least_loaded
"$python" - "$home" << END
import json, sys
answer, status = (json.load(open(f"{sys.argv[1]}/{name}.json")) for name in ("answer", "status"))
hosts = {worker["name"]: worker["host"] for pool in status["pools"] for worker in pool["workers"]}
assert hosts == {"prefill-0": "first", "decode-0": "second"}, hosts
assert answer["handoff"]["pages_sent"] > 0, answer
print(f"all worked; {answer['handoff']['pages_sent']} pages went from {hosts['prefill-0']} to {hosts['decode-0']}")
END
rm -rf "/tmp/ray_ssh_$(printf root | sha256sum | cut -c 1-10)"
