package fault

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/kvbfs/kvbfs/kvstore"
)

// Target says what a rule is about.
type Target uint8

const (
	Reads Target = iota + 1
	Writes
	Discards
	Flushes
	Controls // calls of Control
)

// target of a code; 0, which no rule has, for a code that is not valid.
func target(c kvstore.Code) Target {
	switch c {
	case kvstore.Read:
		return Reads
	case kvstore.Write:
		return Writes
	case kvstore.Discard:
		return Discards
	}
	return 0
}

// Rule hits operations. All that is set must hold; of several rules the first
// one that hits decides.
type Rule struct {
	Target Target
	Kinds  []kvstore.Kind  // of blocks; empty: all
	Layer  kvstore.LayerID // 0: all
	// From and To bound Key.Number, both inclusive; To 0: no upper bound.
	From, To uint64
	Present  bool // only writes that expect the block to be there
	// Skip lets that many matching operations pass first.
	Skip uint64
	// Nth hits each nth one of those that match; 0 means 1: each.
	Nth uint64
	// Times bounds how often the rule hits; 0: no bound.
	Times uint64
	// Probability, if not 0, hits with that chance.
	Probability float64
	Action      Action
	Err         error // of Fail and FailAfter
}

// armed is a rule at work. Guarded by Store.mu.
type armed struct {
	Rule
	seen, hits uint64
}

// match finds the rule that hits an operation, or a call if op is nil. Called
// under mu.
func (s *Store) match(t Target, op *kvstore.Op) (Action, error) {
	for i := range s.rules {
		r := &s.rules[i]
		if r.Target != t || op != nil && (!r.about(op.Key) || r.Present && op.Expect != kvstore.Present) {
			continue
		}
		r.seen++
		switch {
		case r.seen <= r.Skip, (r.seen-r.Skip)%max(r.Nth, 1) != 0:
		case r.Times > 0 && r.hits >= r.Times:
		case r.Probability > 0 && s.rng.Float64() >= r.Probability:
		default:
			r.hits++
			return r.Action, r.Err
		}
	}
	return Pass, nil
}

func (r *Rule) about(k kvstore.Key) bool {
	return (len(r.Kinds) == 0 || slices.Contains(r.Kinds, k.Kind)) &&
		(r.Layer == 0 || r.Layer == k.Layer) &&
		k.Number >= r.From && (r.To == 0 || k.Number <= r.To)
}

// Parse reads rules from text, one per line or semicolon:
//
//	write nth=97 drop
//	read kind=block p=0.01 fail=corrupt
//	write kind=map skip=3 times=1 failafter=timeout
//	flush fail=serverlost; control nth=5 fail=unreachable
//	discard layer=00c0ffee from=10 to=20 drop
//	write kind=block present late; write nth=97 panic
//
// The words of errors are those of kvstore without Err, in small letters. Empty
// lines and what follows a # are skipped.
func Parse(text string) ([]Rule, error) {
	var rules []Rule
	for _, line := range strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == ';' }) {
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		r, err := parseRule(words)
		if err != nil {
			return nil, fmt.Errorf("rule %q: %w", strings.TrimSpace(line), err)
		}
		rules = append(rules, r)
	}
	return rules, nil
}

var targets = map[string]Target{"read": Reads, "write": Writes, "discard": Discards, "flush": Flushes, "control": Controls}

var errorWords = map[string]error{
	"absent": kvstore.ErrAbsent, "exists": kvstore.ErrExists, "conflict": kvstore.ErrConflict,
	"full": kvstore.ErrFull, "fenced": kvstore.ErrFenced, "invalid": kvstore.ErrInvalid,
	"unsupported": kvstore.ErrUnsupported, "corrupt": kvstore.ErrCorrupt, "serverlost": kvstore.ErrServerLost,
	"timeout": kvstore.ErrTimeout, "aborted": kvstore.ErrAborted, "unreachable": kvstore.ErrUnreachable,
	"closed": kvstore.ErrClosed,
}

func parseRule(words []string) (r Rule, err error) {
	if r.Target = targets[words[0]]; r.Target == 0 {
		return r, fmt.Errorf("%q is not read, write, discard, flush or control", words[0])
	}
	for _, word := range words[1:] {
		name, value, _ := strings.Cut(word, "=")
		switch name {
		case "drop":
			r.Action = Drop
		case "late":
			r.Action = Late
		case "panic":
			r.Action = Panic
		case "present":
			r.Present = true
		case "fail", "failafter":
			r.Action = Fail
			if name == "failafter" {
				r.Action = FailAfter
			}
			if r.Err = errorWords[value]; r.Err == nil {
				err = fmt.Errorf("%q is no error", value)
			}
		case "kind":
			r.Kinds, err = parseKinds(value)
		case "p":
			r.Probability, err = strconv.ParseFloat(value, 64)
			if err == nil && !(r.Probability > 0 && r.Probability <= 1) {
				err = fmt.Errorf("%s is not above 0 and at most 1", word)
			}
		case "layer":
			var id uint64
			id, err = strconv.ParseUint(value, 16, 32)
			r.Layer = kvstore.LayerID(id)
		default:
			number := map[string]*uint64{"nth": &r.Nth, "skip": &r.Skip, "times": &r.Times, "from": &r.From, "to": &r.To}[name]
			if number == nil {
				return r, fmt.Errorf("unknown word %q", word)
			}
			*number, err = strconv.ParseUint(value, 10, 64)
		}
		if err != nil {
			return r, err
		}
	}
	if r.Action == Pass {
		return r, fmt.Errorf("it says not what happens: drop, late, panic, fail=ERROR or failafter=ERROR")
	}
	return r, nil
}

// parseKinds reads block, map (all levels), or a number.
func parseKinds(s string) ([]kvstore.Kind, error) {
	switch s {
	case "block":
		return []kvstore.Kind{kvstore.KindBlock}, nil
	case "map":
		var kinds []kvstore.Kind
		for k := kvstore.KindMap; k <= kvstore.KindMapTop; k++ {
			kinds = append(kinds, k)
		}
		return kinds, nil
	}
	n, err := strconv.ParseUint(s, 10, 8)
	return []kvstore.Kind{kvstore.Kind(n)}, err
}
