#!/usr/bin/env bash
# First minutes on a GPU host without network: installs packages from a folder and runs benchmarks.gpu, the most important
# parts first, in two calls. Each writes its JSON after every part, so that no result is lost when time runs out.
#
#   deploy/gpu_first_contact.sh first  CARRIED OUT [FLAG ...]   checks, correctness, decode, handoff       (some 5 minutes)
#   deploy/gpu_first_contact.sh second CARRIED OUT [FLAG ...]   prefill, kernels, sampling, serving        (some 7 minutes)
#
# CARRIED holds the wheels (*.whl) that the host lacks, and packs of compiled FlashInfer kernels, kernels*.tar.xz (python -m
# baton.deploy.flashinfer_kernels build); both may be missing. Further flags go to benchmarks.gpu: --device cpu --shape tiny
# tries the whole script without a GPU. OUT gets the JSON and the log.
set -uo pipefail
usage() { sed -n '2,12s/^# \{0,1\}//p' "$0"; exit "${1:-2}"; }
[[ ${1:-} == -h || ${1:-} == --help ]] && usage 0
[[ $# -ge 3 && ( $1 == first || $1 == second ) ]] || usage
[[ -d $2 ]] || { echo "Folder $2 (wheels and kernels) not found: create it, empty if need be."; exit 2; }
call=$1 carried=$(realpath "$2") out=$(realpath -m "$3"); shift 3
cd "$(dirname "$0")/.."
python=${PYTHON:-python3} site=${SITE:-/tmp/baton-site}
mkdir -p "$out"

shopt -s nullglob
wheels=("$carried"/*.whl)
if (( ${#wheels[@]} )); then
  "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" "${wheels[@]}" \
    || { echo "The wheels in $carried could not be installed into $site."; exit 1; }
  export PYTHONPATH=$site:$PWD
fi
for kernels in "$carried"/kernels*.tar.xz; do
  "$python" -m baton.deploy.flashinfer_kernels install "$kernels" || echo "Skipping $kernels: its kernels are compiled on first use."
done

# A container keeps the driver's libraries in this folder.
export LD_LIBRARY_PATH=/usr/local/nvidia/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} PYTHONUNBUFFERED=1
case $call in
  first) parts=preflight,compile,correctness,decode,handoff budget_s=280 ;;
  second) parts=prefill,kernels,sampling,serving budget_s=380 ;;
esac
exec "$python" -m benchmarks.gpu --only "$parts" --budget-s "$budget_s" --out "$out/$call.json" "$@"
