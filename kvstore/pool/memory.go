package pool

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// memory is what the state directory keeps of one pool, as JSON in
// pools/<hash of URL and name>.json.
type memory struct {
	Format int    `json:"format"` // memoryFormat
	URL    string `json:"url"`    // masked: no secrets
	Name   string `json:"name"`   // of the pool on its servers
	UUID   string `json:"uuid"`   // 32 hexadecimal digits
	// Version of the pool record: it rises when a lost server is accepted, here or
	// by somebody else. Absent: 1.
	Version uint64         `json:"version,omitempty"`
	Servers []memoryServer `json:"servers"`
}

type memoryServer struct {
	Address  string `json:"address"`
	Sentinel string `json:"sentinel"` // 32 hexadecimal digits
}

const memoryFormat = 1

const poolsDir = "pools"

// memoryPath is empty if nothing is to be remembered: no state directory, or a
// store that ends with this process anyway (mem:).
func (p *Pool) memoryPath() string {
	if p.opt.StateDir == "" || p.st.Properties().Name == "mem" {
		return ""
	}
	sum := sha256.Sum256([]byte(p.opt.URL + "\x00" + p.opt.Name))
	return filepath.Join(p.opt.StateDir, poolsDir, hex.EncodeToString(sum[:16])+".json")
}

// recall reads the memory: nil if this pool is not remembered. A damaged file is
// an error: to take it for absent would let an emptied store pass for a new one.
func (p *Pool) recall() (*memory, error) {
	path := p.memoryPath()
	if path == "" {
		return nil, nil
	}
	m, err := readMemory(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	case m.URL != p.opt.URL || m.Name != p.opt.Name:
		return nil, fmt.Errorf("memory of pool %s in %s is about %s: remove the file if the store is all right", p.opt.URL, path, m.URL)
	}
	return m, nil
}

func readMemory(path string) (*memory, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var m memory
	err = json.Unmarshal(text, &m)
	switch {
	case err == nil && m.Format != memoryFormat:
		return nil, fmt.Errorf("memory of a pool in %s: %w %d: upgrade kvbfs", path, ErrFormat, m.Format)
	case err == nil && (len(m.UUID) != 32 || len(m.Servers) == 0):
		err = errors.New("fields are missing")
	}
	if err != nil {
		return nil, fmt.Errorf("memory of a pool in %s is damaged (%v): remove the file if the store is all right", path, err)
	}
	return &m, nil
}

// remember writes the memory of a pool unless it is there already.
func (p *Pool) remember(old *memory, r *poolRecord) error {
	path := p.memoryPath()
	if path == "" {
		return nil
	}
	m := &memory{Format: memoryFormat, URL: p.opt.URL, Name: p.opt.Name, UUID: hex.EncodeToString(r.uuid[:])}
	if r.version > 1 {
		m.Version = r.version
	}
	for _, s := range r.servers {
		m.Servers = append(m.Servers, memoryServer{s.address, hex.EncodeToString(s.sentinel[:])})
	}
	if old != nil && old.UUID == m.UUID && max(old.Version, 1) == max(m.Version, 1) && slices.Equal(old.Servers, m.Servers) {
		return nil
	}
	text, err := json.MarshalIndent(m, "", "\t")
	if err == nil {
		err = writeStable(path, append(text, '\n'))
	}
	if err != nil {
		return fmt.Errorf("pool %s cannot be remembered: %w", p.opt.URL, err)
	}
	return nil
}

// writeStable replaces a file at once (mode 0600) and makes that stable.
func writeStable(path string, content []byte) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".tmp-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails once it is renamed
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Forget drops what the state directory remembers of a URL, under any pool name:
// the user's consent that its data is lost. known says whether there was anything; if
// not, others are the URLs that are remembered, sorted.
func Forget(stateDir, url string) (known bool, others []string, err error) {
	dir := filepath.Join(stateDir, poolsDir)
	files, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil, nil
	}
	if err != nil {
		return false, nil, err
	}
	for _, f := range files {
		path := filepath.Join(dir, f.Name())
		if !strings.HasSuffix(path, ".json") {
			continue
		}
		// Another pool's damaged memory must not keep this one from being forgotten.
		m, err := readMemory(path)
		if err != nil {
			continue
		}
		if m.URL != url {
			others = append(others, m.URL)
			continue
		}
		known = true
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return known, nil, err
		}
	}
	slices.Sort(others)
	return known, slices.Compact(others), syncDir(dir)
}

// forgotten is ErrForgotten with what happened, to whom, and what to do. partly
// says that other servers still know the pool: they would refuse a new one.
func (p *Pool) forgotten(partly bool, format string, args ...any) error {
	cure := "start the server that has its data, or restore it"
	if partly {
		cure += ", or see what is lost with it by `kvbfs volume repair NAME --store " + p.opt.URL + "`" +
			"; or, to give up all data of the pool, empty all of its servers and run"
	} else {
		cure += "; or, to give up all data of the pool, run"
	}
	return fmt.Errorf("%w: %s: %s `kvbfs pool forget %s`", ErrForgotten, fmt.Sprintf(format, args...), cure, p.opt.URL)
}
