package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/kvbfs/kvbfs/cmd/internal/result"
	"github.com/kvbfs/kvbfs/cmd/internal/scratch"
)

// fioGrace is how much longer than its runtime fio may take before it is ended:
// requests that hang must not hang the benchmark.
const fioGrace = 60 * time.Second

// fioMajor and fioMinor are the oldest fio whose JSON this reads.
const fioMajor, fioMinor = 3, 33

// fioVersion returns fio's version, or what to do about it.
func fioVersion(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "fio", "--version").Output()
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	if err != nil {
		return "", fmt.Errorf("fio %d.%d or newer is the load generator: install the package fio (%w)", fioMajor, fioMinor, err)
	}
	version := strings.TrimSpace(string(out))
	var major, minor int
	if _, err := fmt.Sscanf(version, "fio-%d.%d", &major, &minor); err == nil && (major < fioMajor || major == fioMajor && minor < fioMinor) {
		return "", fmt.Errorf("%s is too old: the benchmark needs fio %d.%d", version, fioMajor, fioMinor)
	}
	return version, nil
}

// fioSide is one direction of a job in fio's JSON.
type fioSide struct {
	Bytes   int64   `json:"io_bytes"`
	IOs     int64   `json:"total_ios"`
	Runtime int64   `json:"runtime"` // milliseconds
	IOPS    float64 `json:"iops"`
	BW      float64 `json:"bw_bytes"`
	Latency struct {
		Mean    float64            `json:"mean"`
		N       int64              `json:"N"`
		Percent map[string]float64 `json:"percentile"`
	} `json:"lat_ns"`
}

// fioJob is a job, or a group of equal ones.
type fioJob struct {
	Name  string  `json:"jobname"`
	Error int     `json:"error"`
	Read  fioSide `json:"read"`
	Write fioSide `json:"write"`
}

// parseFio finds the JSON in what fio wrote to its standard output, which may
// begin with notices, and returns its jobs and those notices.
func parseFio(out []byte) (jobs []fioJob, notices string, err error) {
	start := bytes.IndexByte(out, '{')
	for start > 0 && out[start-1] != '\n' {
		next := bytes.IndexByte(out[start+1:], '{')
		if next < 0 {
			start = -1
			break
		}
		start += 1 + next
	}
	if start < 0 {
		return nil, strings.TrimSpace(string(out)), errors.New("fio wrote no results")
	}
	notices = strings.TrimSpace(string(out[:start]))
	var all struct {
		Jobs []fioJob `json:"jobs"`
	}
	dec := json.NewDecoder(bytes.NewReader(out[start:]))
	if err := dec.Decode(&all); err != nil {
		return nil, notices, fmt.Errorf("fio's results cannot be read: %w", err)
	}
	if len(all.Jobs) == 0 {
		return nil, notices, errors.New("fio reports no job")
	}
	return all.Jobs, notices, nil
}

// sample turns a job's figures into ours. Latencies of a mixture are those of its
// reads.
func (j fioJob) sample() result.Sample {
	side := j.Read
	if side.IOs == 0 {
		side = j.Write
	}
	us := func(p string) float64 { return side.Latency.Percent[p] / 1e3 }
	return result.Sample{
		IOPS: j.Read.IOPS + j.Write.IOPS, Bytes: j.Read.BW + j.Write.BW,
		MeanUS: side.Latency.Mean / 1e3, P50US: us("50.000000"), P99US: us("99.000000"), P999US: us("99.900000"),
	}
}

func (j fioJob) ios() int64 { return j.Read.IOs + j.Write.IOs }

// fioArgs are what all our jobs have in common. Threads, because fio's processes
// leave its process group, and an interrupt must find all of it.
func fioArgs(more ...string) []string {
	return append([]string{"fio", "--output-format=json", "--direct=1", "--ioengine=libaio", "--thread",
		"--norandommap", "--randrepeat=0", "--lat_percentiles=1", "--clat_percentiles=0", "--percentile_list=50:99:99.9"}, more...)
}

// workArgs are a job's own options.
func workArgs(name, path string, size int64, seconds int, w result.Work) []string {
	args := []string{
		"--name=" + name, "--filename=" + path, "--rw=" + w.Kind, "--bs=" + strconv.FormatInt(w.Block, 10),
		"--iodepth=" + strconv.Itoa(w.Depth), "--numjobs=" + strconv.Itoa(w.Jobs), "--size=" + strconv.FormatInt(size, 10),
		"--time_based", "--runtime=" + strconv.Itoa(seconds), "--group_reporting",
	}
	if w.Kind == "randrw" {
		args = append(args, "--rwmixread=70")
	}
	if w.Jobs > 1 && (w.Kind == "read" || w.Kind == "write") {
		// Each job has its own part, or they would read what another one just read.
		args = append(args, "--offset_increment="+strconv.FormatInt(size/int64(w.Jobs)&^(1<<20-1), 10))
	}
	return args
}

// runFio runs fio and returns its jobs. The error names the first job that failed
// and what fio said.
func runFio(ctx context.Context, s *scratch.Place, limit time.Duration, args []string) ([]fioJob, error) {
	ctx, cancel := context.WithTimeout(ctx, limit+fioGrace)
	defer cancel()
	cmd := s.Command(ctx, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if ctx.Err() == context.DeadlineExceeded {
		return nil, fmt.Errorf("fio job %s did not end within %v", jobName(args), limit+fioGrace)
	}
	jobs, notices, perr := parseFio(out.Bytes())
	said := firstLine(errs.String(), notices)
	for _, j := range jobs {
		if j.Error != 0 {
			return nil, fmt.Errorf("fio job %s failed with error %d: %s", j.Name, j.Error, said)
		}
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		return nil, fmt.Errorf("fio job %s: %w: %s", jobName(args), err, said)
	case perr != nil:
		return nil, fmt.Errorf("fio job %s: %w: %s", jobName(args), perr, said)
	}
	return jobs, nil
}

func jobName(args []string) string {
	for _, a := range args {
		if name, ok := strings.CutPrefix(a, "--name="); ok {
			return name
		}
	}
	return "?"
}

// firstLine returns the first line that says something.
func firstLine(texts ...string) string {
	for _, t := range texts {
		for line := range strings.Lines(t) {
			if line = strings.TrimSpace(line); line != "" {
				return line
			}
		}
	}
	return "it said nothing"
}
