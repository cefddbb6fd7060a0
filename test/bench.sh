#!/usr/bin/env bash
# make bench: fio on the exposed file and on the loop device, kvbfs over
# memcached (loopback TCP) beside nbdfuse + nbdkit-memory, in alternating rounds.
# Prints medians, the ratio, and the share of time that the host stole.
#
# Usage: test/bench.sh BIN   Environment: ROUNDS=5 SECONDS_EACH=4 SIZE_MB=1024
set -euo pipefail
bin=$(readlink -f "${1:?path of the kvbfs binary}")
rounds=${ROUNDS:-5}
secs=${SECONDS_EACH:-4}
mb=${SIZE_MB:-1024}
for tool in fio memcached losetup; do
  command -v "$tool" >/dev/null || { echo "bench: $tool is missing (test/deps.sh bench installs it)" >&2; exit 1; }
done
[ "$(id -u)" = 0 ] || { echo "bench: loop devices need root" >&2; exit 1; }

work=$(mktemp -d)
export KVBFS_STATE_DIR=$work/state KVBFS_RUNTIME_DIR=$work/run
declare -A loop=()
mcpid= nbdpid=
cleanup() {
  trap '' INT TERM
  for d in "${loop[@]}"; do losetup -d "$d" 2>/dev/null || true; done
  sleep 0.3
  "$bin" umount "$work/kvb" >/dev/null 2>&1 || umount -l "$work/kvb" 2>/dev/null || true
  umount "$work/nbd" 2>/dev/null || umount -l "$work/nbd" 2>/dev/null || true
  [ -z "$nbdpid" ] || kill "$nbdpid" 2>/dev/null || true
  [ -z "$mcpid" ] || kill "$mcpid" 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

mkdir -p "$work/kvb" "$work/nbd"
port=$((20000 + RANDOM % 20000))
memcached -u root -l 127.0.0.1 -p $port -U 0 -m $((mb * 2)) -M -F -k -t 4 -R 128 -c 4096 \
  -o slab_sizes=96-192-4176-4240-8352,slab_automove=0 2>/dev/null &
mcpid=$!
for _ in $(seq 100); do (echo version >/dev/tcp/127.0.0.1/$port) 2>/dev/null && break; sleep 0.05; done
store=memcached://127.0.0.1:$port
"$bin" mount "$work/kvb" --store "$store" ${KVBFS_BENCH_MOUNT:-} >/dev/null
"$bin" volume create bench --size ${mb}M --store "$store" >/dev/null
peers=(kvbfs)
loop[kvbfs]=$("$bin" attach bench --dir "$work/kvb")
if command -v nbdfuse >/dev/null && command -v nbdkit >/dev/null; then
  peers+=(nbdfuse)
  nbdfuse "$work/nbd" [ nbdkit --exit-with-parent memory ${mb}M ] &
  nbdpid=$!
  for _ in $(seq 100); do [ -e "$work/nbd/nbd" ] && break; sleep 0.05; done
  loop[nbdfuse]=$(losetup --show -f --direct-io=on -b 4096 "$work/nbd/nbd")
fi
declare -A file=([kvbfs]=$work/kvb/bench [nbdfuse]=$work/nbd/nbd)

steal() { awk '/^cpu /{t=0; for(i=2;i<=9;i++) t+=$i; print $9, t}' /proc/stat; }

# one TARGET JOB...: the number that the job is about: IOPS, KiB/s or us
one() {
  local target=$1 field=$2; shift 2
  fio --name=b --filename="$target" --direct=1 --ioengine=libaio --time_based --runtime="$secs" \
    --ramp_time=0.5 --size=${mb}M --group_reporting --norandommap --randrepeat=0 \
    --output-format=terse --terse-version=3 "$@" 2>/dev/null | awk -F';' -v f="$field" '/^3;/{print $f}'
}
# terse version 3: 7 read KiB/s, 8 read IOPS, 40 read lat mean us, 48 write KiB/s, 49 write IOPS, 81 write lat mean us
jobs=(
  "randread-4k-qd32x2|8|--rw=randread --bs=4k --iodepth=32 --numjobs=2"
  "randwrite-4k-qd32x2|49|--rw=randwrite --bs=4k --iodepth=32 --numjobs=2"
  "randread-4k-qd1-us|40|--rw=randread --bs=4k --iodepth=1"
  "randwrite-4k-qd1-us|81|--rw=randwrite --bs=4k --iodepth=1"
  "read-128k-qd8-KiB/s|7|--rw=read --bs=128k --iodepth=8"
  "write-128k-qd8-KiB/s|48|--rw=write --bs=128k --iodepth=8"
)
median() { sort -n | awk '{a[NR]=$1} END{print a[int((NR+1)/2)]}'; }

echo "filling ${mb} MiB on each peer"
for p in "${peers[@]}"; do
  fio --name=fill --filename="${loop[$p]}" --direct=1 --ioengine=libaio --rw=write --bs=1M --iodepth=4 \
    --size=${mb}M >/dev/null
done
read -r s0 t0 < <(steal)
for where in file loop; do
  printf '\n%-22s' "$where, median of $rounds"
  for p in "${peers[@]}"; do printf '%12s' "$p"; done
  printf '%9s\n' ratio
  for job in "${jobs[@]}"; do
    IFS='|' read -r name field args <<<"$job"
    for p in "${peers[@]}"; do : >"$work/$p.res"; done
    for _ in $(seq "$rounds"); do
      for p in "${peers[@]}"; do
        target=${loop[$p]}
        [ $where = loop ] || target=${file[$p]}
        # shellcheck disable=SC2086 # the job's words
        one "$target" "$field" $args >>"$work/$p.res"
      done
    done
    printf '%-22s' "$name"
    for p in "${peers[@]}"; do printf '%12.0f' "$(median <"$work/$p.res")"; done
    [ ${#peers[@]} -lt 2 ] || awk -v a="$(median <"$work/kvbfs.res")" -v b="$(median <"$work/nbdfuse.res")" 'BEGIN{printf "%9.2f", a/b}'
    echo
  done
done
read -r s1 t1 < <(steal)
awk -v s=$((s1 - s0)) -v t=$((t1 - t0)) 'BEGIN{printf "\nstolen by the host: %.1f %% of the time\n", 100*s/t}'
