// Package failover tests stores whose servers move: a Redis Cluster whose masters die,
// hang, or give their slots away, and a master that Sentinels replace. It looks at
// the contract only (kvstore.Channel), under load, without a mount.
package failover
