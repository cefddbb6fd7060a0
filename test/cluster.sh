#!/usr/bin/env bash
# A Redis Cluster of 3 masters and 3 replicas on this machine, for trying out.
# Usage: test/cluster.sh up|down   (KVBFS_CLUSTER_DIR: where it lives, KVBFS_CLUSTER_PORT: the first of its six ports)
set -euo pipefail
dir=${KVBFS_CLUSTER_DIR:-${XDG_RUNTIME_DIR:-/tmp}/kvbfs-cluster}
first=${KVBFS_CLUSTER_PORT:-7000}
ports=$(seq "$first" $((first + 5)))

down() {
  [ -d "$dir" ] || { echo "no cluster in $dir"; return 0; }
  for port in $ports; do
    [ -e "$dir/$port/pid" ] || continue
    pid=$(cat "$dir/$port/pid")
    # Only a redis-server that runs in our directory.
    if [ "$(readlink "/proc/$pid/cwd" 2>/dev/null)" = "$(realpath "$dir/$port")" ]; then
      kill "$pid"
      while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
    fi
  done
  rm -rf "$dir"
  echo "cluster in $dir is gone, with its data"
}

up() {
  command -v redis-server >/dev/null || { echo "redis-server is not installed (Debian: apt install redis-server)" >&2; exit 1; }
  [ ! -e "$dir" ] || { echo "$dir is there already: test/cluster.sh down" >&2; exit 1; }
  nodes=()
  for port in $ports; do
    mkdir -m 700 -p "$dir/$port"
    redis-server --port "$port" --bind 127.0.0.1 --dir "$dir/$port" --daemonize yes --pidfile "$dir/$port/pid" \
      --logfile "$dir/$port/log" --cluster-enabled yes --cluster-node-timeout 5000 --maxmemory 256mb \
      --maxmemory-policy noeviction --appendonly yes --appendfsync everysec --save '' >/dev/null
    nodes+=("127.0.0.1:$port")
  done
  for port in $ports; do
    for _ in $(seq 100); do
      redis-cli -p "$port" ping >/dev/null 2>&1 && break
      sleep 0.1
    done
  done
  redis-cli --cluster create "${nodes[@]}" --cluster-replicas 1 --cluster-yes >"$dir/create.log" 2>&1 || {
    cat "$dir/create.log" >&2
    exit 1
  }
  for _ in $(seq 300); do
    redis-cli -p "$first" cluster info 2>/dev/null | grep -q '^cluster_state:ok' && break
    sleep 0.1
  done
  echo "3 masters and 3 replicas of 256 MiB: redis+cluster://127.0.0.1:$first"
}

case ${1:-} in
up) up ;;
down) down ;;
*)
  sed -n '2,3p' "$0" >&2
  exit 2
  ;;
esac
