#!/bin/sh
# record.sh fio|ext4|sqlite OUT: records which blocks a volume is asked for (kvstore/trace) by
#   fio     200000 random reads of 1 GiB, zipf 0.9, direct I/O
#   ext4    a build of Go's standard library from a copy of its tree, then vet of it
#   sqlite  point queries, updates and short scans of a table of 400 MB with an index
# Between kvbfs and the last two is a page cache of a size that is a fraction of what is read: they run in a memory cgroup
# (of the daemon's own group none is limited). As root; needs memcached, fio, e2fsprogs, sqlite3, go and 3 GB of memory.
set -eu
what=$1 out=$(realpath -m "$2")
top=$(cd "$(dirname "$0")/../.." && pwd)
dir=$(mktemp -d) group=
export KVBFS_STATE_DIR="$dir/state" KVBFS_RUNTIME_DIR="$dir/run"
store="memcached+unix://$dir/mc.sock"
unset KVBFS_STORE
dev='' server='' mounted=''

finish() {
	status=$?
	cd /
	if grep -q " $dir/fs " /proc/self/mountinfo; then umount "$dir/fs" || umount -l "$dir/fs"; fi
	if [ -n "$dev" ]; then "$dir/kvbfs" detach "$dev" || true; fi
	if [ -n "$mounted" ]; then "$dir/kvbfs" umount "$dir/mnt" || status=1; fi
	if [ -n "$server" ]; then kill "$server" || true; fi
	if [ -n "$group" ]; then sleep 1; rmdir "$group" || true; fi
	rm -rf --one-file-system "$dir"
	exit $status
}
trap finish EXIT
trap 'exit 1' INT TERM

# limited SIZE COMMAND...: runs it in a memory cgroup
limited() {
	size=$1
	shift
	if [ -d /sys/fs/cgroup/memory ]; then
		group=/sys/fs/cgroup/memory/kvbfs-record-$$ file=memory.limit_in_bytes
	else
		group=/sys/fs/cgroup/kvbfs-record-$$ file=memory.max
	fi
	mkdir -p "$group"
	echo "$size" >"$group/$file"
	sh -c 'echo $$ >"$0/cgroup.procs" && exec "$@"' "$group" "$@"
}

# made: what was written so far is no part of the trace: kvbfs begins it anew
made() {
	umount "$dir/fs"
	"$dir/kvbfs" detach "$dev" >/dev/null
	dev=''
	"$dir/kvbfs" umount "$dir/mnt"
	mounted=''
}

serve() {
	KVBFS_TRACE=$1 "$dir/kvbfs" mount "$dir/mnt" --store "$store" >/dev/null
	mounted=yes
	dev=$("$dir/kvbfs" attach v --dir "$dir/mnt" | grep -o '/dev/loop[0-9]*' | head -1)
}

(cd "$top" && go build -tags kvbfs_faults -o "$dir/kvbfs" ./cmd/kvbfs)
mkdir -m 700 "$dir/state" "$dir/run"
mkdir "$dir/mnt" "$dir/fs"
memcached -M -F -m 2500 -t 2 -R 128 -s "$dir/mc.sock" -u root -o slab_sizes=96-192-4176-8352,slab_automove=0 &
server=$!
for _ in 1 2 3 4 5 6 7 8 9 10; do [ -S "$dir/mc.sock" ] && break; sleep 0.2; done
"$dir/kvbfs" volume create v --size 1500M --store "$store" >/dev/null

case $what in
fio)
	serve "$dir/filling"
	# Blocks that are not stored are answered by the presence map.
	fio --name=fill --filename="$dev" --direct=1 --rw=write --bs=1M --size=1G --output=/dev/null
	"$dir/kvbfs" detach "$dev" >/dev/null && dev=''
	"$dir/kvbfs" umount "$dir/mnt" && mounted=''
	serve "$out"
	fio --name=zipf --filename="$dev" --direct=1 --rw=randread --bs=4k --ioengine=libaio --iodepth=4 --size=1G \
		--random_distribution=zipf:0.9 --norandommap --number_ios=200000 --io_size=1000G --output=/dev/null
	;;
ext4)
	serve "$dir/filling"
	mkfs.ext4 -q "$dev"
	mount "$dev" "$dir/fs"
	goroot=$(cd "$top" && go env GOROOT)
	cp -r "$goroot" "$dir/fs/go"
	rm -rf "$dir/fs/go/test" "$dir/fs/go/.git"
	made
	serve "$out"
	mount "$dev" "$dir/fs"
	cd "$dir/fs/go/src"
	export GOROOT="$dir/fs/go" GOCACHE="$dir/fs/cache" GOFLAGS=-p=1 GOMAXPROCS=2 GOTOOLCHAIN=local GOENV=off GOTELEMETRY=off CGO_ENABLED=0
	limited 400M "$dir/fs/go/bin/go" build std
	limited 400M "$dir/fs/go/bin/go" vet net/... crypto/... encoding/...
	;;
sqlite)
	serve "$dir/filling"
	mkfs.ext4 -q "$dev"
	mount "$dev" "$dir/fs"
	sqlite3 "$dir/fs/db" "PRAGMA journal_mode=WAL; PRAGMA page_size=4096; CREATE TABLE t(id INTEGER PRIMARY KEY, k TEXT, v BLOB);
		WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<600000)
		INSERT INTO t SELECT i, hex(randomblob(12)), randomblob(550) FROM n;
		CREATE INDEX tk ON t(k);" >/dev/null
	made
	# Keys whose popularity falls off, scattered over the table by a prime; each 10th an update, each 20th a scan of the index.
	awk 'BEGIN { srand(7); print "PRAGMA journal_mode=WAL;"; for (i = 0; i < 150000; i++) {
		u = rand(); id = int(600000 * u * u * u * u); id = (id * 7919) % 600000 + 1
		if (i % 10 == 3) print "UPDATE t SET v=randomblob(550) WHERE id=" id ";"
		else if (i % 20 == 7) print "SELECT sum(length(v)) FROM (SELECT v FROM t WHERE k > (SELECT k FROM t WHERE id=" id ") ORDER BY k LIMIT 20);"
		else print "SELECT length(v) FROM t WHERE id=" id ";" } }' >"$dir/queries"
	serve "$out"
	mount "$dev" "$dir/fs"
	limited 24M sqlite3 "$dir/fs/db" ".read $dir/queries" >/dev/null
	;;
*)
	echo "record.sh: fio, ext4 or sqlite?" >&2
	exit 2
	;;
esac
