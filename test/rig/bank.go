package rig

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// Bank writes transactions into a sqlite database, and notes each one that was
// acknowledged in a witness file on another, local disk. A transaction is
// acknowledged when sqlite3 has printed what follows its COMMIT.
type Bank struct {
	r       *Rig
	DB      string // on the disk under test
	Witness string // elsewhere
	pragmas string

	next int64 // id of the next transaction; ids are never used twice

	mu    sync.Mutex
	acked int64 // guarded by mu: acknowledged since the bank was opened
}

// NewBank makes a bank with BankLog or BankJournal, whose witness is in the scratch
// directory.
func (r *Rig) NewBank(db, pragmas string) *Bank {
	r.T.Helper()
	Require(r.T, "sqlite3")
	return &Bank{r: r, DB: db, Witness: r.unique("witness", ""), pragmas: pragmas, next: 1}
}

// Acknowledged is the number of transactions that were acknowledged so far.
func (b *Bank) Acknowledged() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.acked
}

// The two settings under which sqlite promises that a commit survives: a
// write-ahead log that is synced with each commit, and a rollback journal whose
// deletion is synced. (With FULL and a rollback journal it is not: the journal may
// come back after a crash and take the last commit along. Tried.)
const (
	BankLog     = "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;"
	BankJournal = "PRAGMA journal_mode=DELETE; PRAGMA synchronous=EXTRA;"
)

const bankTable = "\nCREATE TABLE IF NOT EXISTS ledger(id INTEGER PRIMARY KEY, payload BLOB, sum TEXT);\n"

// Run commits transactions until sqlite3 fails, as it does when its disk dies, or
// until stop is closed.
func (b *Bank) Run(stop <-chan struct{}) error {
	cmd := exec.Command("sqlite3", "-batch", "-bail", b.DB)
	cmd.Env = b.r.Env()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	witness, err := os.OpenFile(b.Witness, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer witness.Close()
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() {
		in.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	if _, err := io.WriteString(in, b.pragmas+bankTable); err != nil {
		return err
	}
	lines := bufio.NewScanner(out)
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		id := b.next
		b.next++
		// A payload of several pages makes a commit several writes.
		if _, err := fmt.Fprintf(in, "BEGIN; INSERT INTO ledger VALUES(%d, zeroblob(9000), 'sum%d'); COMMIT; SELECT 'ack', %d;\n", id, id*7919, id); err != nil {
			return fmt.Errorf("sqlite3 has ended: %w", err)
		}
		for {
			if !lines.Scan() {
				return fmt.Errorf("sqlite3 has ended: %w", io.ErrUnexpectedEOF)
			}
			// The pragmas print a line too.
			if lines.Text() == fmt.Sprintf("ack|%d", id) {
				break
			}
		}
		// The witness is not part of the test: the test's own process stays alive.
		if _, err := fmt.Fprintln(witness, id); err != nil {
			return err
		}
		b.mu.Lock()
		b.acked++
		b.mu.Unlock()
	}
}

// Verify fails the test unless Check finds nothing.
func (b *Bank) Verify() {
	b.r.T.Helper()
	if err := b.Check(); err != nil {
		b.r.T.Fatal(err)
	}
}

// Check looks at the database, and whether every transaction of the witness is in it.
func (b *Bank) Check() error {
	if res := b.r.Try("sqlite3", "-batch", b.DB, "PRAGMA integrity_check;"); strings.TrimSpace(res.Stdout) != "ok" {
		return fmt.Errorf("sqlite's integrity check: status %d, %s", res.Code, res.All())
	}
	res := b.r.Try("sqlite3", "-batch", b.DB, "SELECT id || '|' || length(payload) || '|' || sum FROM ledger;")
	if res.Code != 0 {
		return fmt.Errorf("reading the ledger: %s", res.All())
	}
	have := map[int64]bool{}
	for _, line := range strings.Fields(res.Stdout) {
		f := strings.Split(line, "|")
		id, err := strconv.ParseInt(f[0], 10, 64)
		if err != nil || len(f) != 3 || f[1] != "9000" || f[2] != fmt.Sprintf("sum%d", id*7919) {
			return fmt.Errorf("the ledger has %q", line)
		}
		have[id] = true
	}
	text, err := os.ReadFile(b.Witness)
	if err != nil {
		return err
	}
	var lost []string
	words := strings.Fields(string(text))
	for _, word := range words {
		if id, err := strconv.ParseInt(word, 10, 64); err != nil || !have[id] {
			lost = append(lost, word)
		}
	}
	if len(lost) > 0 {
		return fmt.Errorf("%d of %d acknowledged transactions are lost: %s ...", len(lost), len(words), strings.Join(lost[:min(len(lost), 5)], ", "))
	}
	return nil
}
