#!/usr/bin/env bash
# Starts a cluster of one node in release mode under a root of its own, measures it and the store, and
# takes it away again, also after a failure. Arguments go to `bench` (`bench --help` tells them).
set -euo pipefail
cd "$(dirname "$0")/.."
release=${CARGO_TARGET_DIR:-$PWD/target}/release
deploy/local/packages.sh demo
deploy/local/packages.sh test
cargo build --release -p e2e --bin bench
root=$(mktemp -d /tmp/keelson-bench-XXXXXX)

finish() {
  status=$?
  trap - EXIT INT TERM
  if [ $status -ne 0 ]; then
    echo "logs of the daemons (last lines):"
    tail -n 25 "$root"/hosts/*/log/ku*.log "$root"/hosts/*/log/keelson-*.log || true
  fi
  "$release/keelson-local" down --root "$root" --purge || status=1
  exit $status
}
trap finish EXIT
trap 'exit 130' INT TERM

"$release/keelson-local" up --root "$root"
"$release/keelson-local" demo-image --root "$root"
"$release/bench" --root "$root" --kubeconfig "$root/kubeconfig/admin.conf" "$@"
