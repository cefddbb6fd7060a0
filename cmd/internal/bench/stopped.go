package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/kvbfs/kvbfs/cmd/internal/result"
)

const (
	// extent is what a pool keeps together on one server, in bytes.
	extent = 128 << 10
	// stoppedVolume is the size of the volume of this check.
	stoppedVolume = 32 << 20
	// enoughExtents of one server are enough to read at random from.
	enoughExtents = 48
	// stuckReads wait for the stopped server while the others are measured: fewer
	// than a queue holds, as the contract asks.
	stuckReads = 8
)

// stopped measures random reads of one server's blocks with both servers alive,
// and with the other one stopped while some reads wait for it. The server
// whose address sorts first stays: it has the volume's lease.
func (b *bench) stopped(ctx context.Context, transport string) (c result.Check, err error) {
	c = result.Check{Name: checkStopped, What: "random reads of a server's blocks while another server is stopped, to before",
		Transport: transport, Unit: "%", Limit: stoppedLimit, AtLeast: true}
	b.show.step("%s: two servers", checkID(c.Name, transport, ""))
	var two []*server
	for range 2 {
		s, err := startServer(ctx, b.place, 2*stoppedVolume)
		if err != nil {
			return c, err
		}
		two = append(two, s)
		b.servers = append(b.servers, s)
	}
	slices.SortFunc(two, func(x, y *server) int { return strings.Compare(x.addr, y.addr) })
	url, volume := storeURL(two...), "two-"+transport
	m, err := b.serve(ctx, "stopped-"+transport, url, transport, map[string]int64{volume: stoppedVolume})
	if err != nil {
		return c, err
	}
	image := m.image(volume)
	// Held open, as by a loop device: an open in the middle of the outage would wait
	// for the pages of the map that the stopped server has.
	hold, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return c, err
	}
	defer func() { _ = hold.Close() }() // twice on the way of success
	if err := b.fill(ctx, "two servers", image, stoppedVolume); err != nil {
		return c, err
	}
	extents, err := b.extents(ctx, m, volume, two)
	if err != nil {
		return c, err
	}
	log, stuck := b.place.Path("alive-"+transport+".log"), b.place.Path("stopped-"+transport+".log")
	if err := errors.Join(writeLog(log, image, extents[0], 30_000*b.opt.Seconds), writeLog(stuck, image, extents[1], stuckReads)); err != nil {
		return c, err
	}
	var before, after []result.Sample
	for round := range b.opt.Rounds {
		b.show.step("%s: round %d/%d", checkID(c.Name, transport, ""), round+1, b.opt.Rounds)
		s, err := b.replay(ctx, m, log)
		if err != nil {
			return c, err
		}
		before = append(before, s)
		if s, err = b.replayStopped(ctx, m, log, stuck, two[1]); err != nil {
			return c, err
		}
		after = append(after, s)
	}
	a, noisyA := result.Settle(before)
	w, noisyW := result.Settle(after)
	c.Noisy = noisyA || noisyW
	c.Parts = []result.Part{{Name: "both alive", Value: a.IOPS, Unit: "IOPS"}, {Name: "one stopped", Value: w.IOPS, Unit: "IOPS"}}
	if a.IOPS > 0 {
		c.Value = 100 * w.IOPS / a.IOPS
	}
	err = errors.Join(hold.Close(), b.place.Umount(ctx, m.dir))
	for _, s := range two {
		s.stop()
	}
	return c, err
}

// extents asks where the parts of a volume are: a list of offsets for each server.
func (b *bench) extents(ctx context.Context, m *mount, volume string, servers []*server) ([][]int64, error) {
	found := make([][]int64, len(servers))
	for off := int64(0); off < stoppedVolume; off += extent {
		out, err := b.place.Kvbfs(ctx, "volume", "where", volume, fmt.Sprint(off), "--json", "--store", m.url)
		if err != nil {
			return nil, err
		}
		var place struct {
			Server string `json:"server"`
		}
		if err := json.Unmarshal([]byte(out), &place); err != nil {
			return nil, fmt.Errorf("kvbfs volume where printed %q: %w", out, err)
		}
		enough := true
		for i, s := range servers {
			if s.addr == place.Server {
				found[i] = append(found[i], off)
			}
			enough = enough && len(found[i]) >= enoughExtents
		}
		if enough {
			return found, nil
		}
	}
	for i := range found {
		if len(found[i]) == 0 {
			return nil, fmt.Errorf("no part of the volume is on %s", servers[i].addr)
		}
	}
	return found, nil
}

// writeLog writes random reads of 4 KiB as fio replays them.
func writeLog(path, image string, extents []int64, n int) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	fmt.Fprintf(w, "fio version 2 iolog\n%s add\n%s open\n", image, image)
	for range n {
		off := extents[rand.IntN(len(extents))] + rand.Int64N(extent/block4k)*block4k
		fmt.Fprintf(w, "%s read %d %d\n", image, off, block4k)
	}
	fmt.Fprintf(w, "%s close\n", image)
	return errors.Join(w.Flush(), f.Close())
}

// replay reads what a log says, 32 at a time.
func (b *bench) replay(ctx context.Context, m *mount, log string) (result.Sample, error) {
	return repeat(func() (result.Sample, error) {
		return metered(m.pid, func() (result.Sample, int64, error) {
			jobs, err := runFio(ctx, b.place, fillTime, fioArgs("--name=replay", "--read_iolog="+log, "--replay_no_stall=1", "--iodepth=32"))
			if err != nil {
				return result.Sample{}, 0, err
			}
			return jobs[0].sample(), jobs[0].ios(), nil
		})
	})
}

// stoppedPatience is how long reads of the server that lives may take while the
// other one is stopped. Then that one goes on, so that the check ends with a bad
// figure and not with a hang.
const stoppedPatience = 20 * time.Second

// replayStopped does the same while a server is stopped and reads wait for it.
func (b *bench) replayStopped(ctx context.Context, m *mount, log, stuck string, victim *server) (result.Sample, error) {
	if err := victim.pause(ctx); err != nil {
		return result.Sample{}, err
	}
	waiting := make(chan error, 1)
	go func() {
		_, err := runFio(ctx, b.place, fillTime, fioArgs("--name=stuck", "--read_iolog="+stuck, "--replay_no_stall=1", fmt.Sprintf("--iodepth=%d", stuckReads)))
		waiting <- err
	}()
	// They are on their way when the figure is taken.
	select {
	case <-ctx.Done():
	case <-time.After(time.Second):
	}
	patience := time.AfterFunc(stoppedPatience, victim.resume)
	s, err := b.replay(ctx, m, log)
	patience.Stop()
	victim.resume()
	return s, errors.Join(err, <-waiting)
}
