#!/usr/bin/env bash
# Runs `ray up deploy/ray-local.yaml` for real: against a real sshd on 127.0.0.1, then `baton up`, a prompt, `baton down`
# and `ray down`.  Usage:  [PYTHON=.venv/bin/python] deploy/try_ray_up.sh
#
# All of it happens in namespaces of its own (network, processes, mounts). So port 22 is free, the sshd and its keys are
# seen by nobody else, `ray stop` cannot end another Ray of this machine, and nothing stays when the script ends.
# Needs root and Debian's openssh-server, openssh-client, rsync, iproute2 and util-linux; says so (exit code 77) if not.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$(command -v "${PYTHON:-python3}" || true)

skip() {
  echo "skipped: $1" >&2
  exit 77
}

if [ "${1:-}" != inside ]; then
  [ "$(id -u)" = 0 ] || skip "root is needed for namespaces and an sshd"
  for tool in sshd ssh ssh-keygen rsync ip unshare; do
    command -v "$tool" > /dev/null || skip "$tool is missing (apt-get install openssh-server openssh-client rsync iproute2)"
  done
  [ -n "$python" ] && "$python" -c "import ray, grpc" || skip "$python has no Ray: set PYTHON to Baton's Python"
  unshare --net --pid --mount --fork true 2> /dev/null || skip "namespaces are not allowed here"
  home=$(mktemp -d /tmp/baton-ssh-XXXXXX)
  trap 'rm -rf "$home"' EXIT
  PYTHON=$python unshare --net --pid --mount --fork --mount-proc --kill-child "${BASH_SOURCE[0]}" inside "$home"
  exit
fi

# From here on: process 1 of its own namespaces.
home=$2
export HOME=$home RAY_TMPDIR=$home/ray TMPDIR=$home BATON_HOME=$home/.baton RAY_USAGE_STATS_ENABLED=0
ip link set lo up

# root's home is the new folder, for sshd and for ssh, which both ask /etc/passwd.
sed "s#^\(root:[^:]*:[^:]*:[^:]*:[^:]*:\)[^:]*#\1$home#" /etc/passwd > "$home/passwd"
mount --bind "$home/passwd" /etc/passwd
mount -t tmpfs none /run
mkdir -p /run/sshd "$home/.ssh" "$RAY_TMPDIR"
chmod 700 "$home" "$home/.ssh"
ssh-keygen -q -t ed25519 -N "" -f "$home/.ssh/host_key"
ssh-keygen -q -t ed25519 -N "" -f "$home/.ssh/id_ed25519"
cp "$home/.ssh/id_ed25519.pub" "$home/.ssh/authorized_keys"
"$(command -v sshd)" -f /dev/null -h "$home/.ssh/host_key" -o ListenAddress=127.0.0.1 -o PidFile="$home/sshd.pid" \
  -o PasswordAuthentication=no -o UsePAM=no

# The machine is "installed" already, with this Python's libraries and this checkout's code.
mkdir -p "$home/baton-env/bin"
printf '#!/bin/sh\nexec "%s" -m ray.scripts.scripts "$@"\n' "$python" > "$home/baton-env/bin/ray"
printf '#!/bin/sh\nexec "%s" -c "from baton.cli import main; main()" "$@"\n' "$python" > "$home/baton-env/bin/baton"
chmod +x "$home"/baton-env/bin/*
cat > "$home/.bashrc" << END
export PATH=$home/baton-env/bin:\$PATH PYTHONPATH=$root RAY_TMPDIR=$RAY_TMPDIR RAY_USAGE_STATS_ENABLED=0
END
. "$home/.bashrc"

cd "$root"

ray up --yes --no-config-cache deploy/ray-local.yaml
export RAY_ADDRESS=127.0.0.1:6379
baton up --port 0
baton status
baton generate "Hello" --max-tokens 8
baton down
unset RAY_ADDRESS
ray down --yes deploy/ray-local.yaml
rm -rf "/tmp/ray_ssh_$(printf root | sha256sum | cut -c 1-10)"
echo "ray up, baton up, generate, baton down, ray down: all worked"
