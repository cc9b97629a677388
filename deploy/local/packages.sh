#!/usr/bin/env bash
# Installs what is missing from Debian's packages: `run` for a cluster, `demo` for the demo image,
# `test` for the tests. A package that is there already is left alone, and so is a program of another
# origin: Debian's containerd would take Docker's away, and Docker with it.
set -euo pipefail

case "${1:?run, demo or test}" in
  run) wanted=(containernetworking-plugins nftables iproute2 conntrack curl gcc libc6-dev)
       command -v containerd >/dev/null || wanted+=(containerd)
       command -v runc >/dev/null || wanted+=(runc)
       command -v kubectl >/dev/null || wanted+=(kubernetes-client) ;;
  demo) wanted=(busybox-static) ;;
  test) wanted=(busybox-static etcd-server etcd-client prometheus procps) ;;
  *) echo "packages.sh: run, demo or test" >&2; exit 2 ;;
esac

missing=()
for package in "${wanted[@]}"; do
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -ne 0 ]; then
  echo "packages.sh: run as root, or install: ${missing[*]}" >&2
  exit 1
fi
# Two at once would find apt's lists locked.
mkdir -p /run/lock
exec 9>/run/lock/keelson-packages
flock 9
echo "installing ${missing[*]}"
# Daemons of these packages are not to be started by their installation, nor when the machine starts:
# Keelson runs its own.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' > "$policy"
  chmod +x "$policy"
  trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# busybox-static takes the place of busybox, with which it shares its file; nothing else may go.
keep=(--no-remove)
[ "$1" = run ] || keep=()
apt-get install -y -qq --no-install-recommends "${keep[@]}" "${missing[@]}" >/dev/null

command -v systemctl >/dev/null || exit 0
for package in "${missing[@]}"; do
  case $package in
    containerd) units=(containerd) ;;
    etcd-server) units=(etcd) ;;
    prometheus) units=(prometheus prometheus-node-exporter) ;;
    *) continue ;;
  esac
  systemctl disable --quiet "${units[@]}" 2>/dev/null || true
done
