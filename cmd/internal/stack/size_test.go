package stack

import (
	"errors"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/kvbfs/kvbfs/kvstore/storetest"
)

func TestParseSize(t *testing.T) {
	good := map[string]int64{
		"0": 0, "1": 1, "4096": 4096, "10G": 10 << 30, "10g": 10 << 30, "512M": 512 << 20, "1.5T": 3 << 39,
		"1K": 1024, "2KiB": 2048, "2KB": 2048, "2P": 2 << 50, "7E": 7 << 60, " 3M ": 3 << 20, "100B": 100,
		"0.5K": 512, "9223372036854775807": math.MaxInt64,
	}
	for in, want := range good {
		if got, err := ParseSize(in); err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "G", "B", ".", ".G", "-1", "-1G", "+1", "1e3", "0x10", "inf", "nan", "1.5", "10 G", "1..5G",
		"8E", "9223372036854775808", "99999999999999999999G", "10GG", "1.0000000001K", "ten", "1_000"} {
		if got, err := ParseSize(in); !errors.Is(err, ErrInput) {
			t.Errorf("ParseSize(%q) = %d, %v; want ErrInput", in, got, err)
		}
	}
}

func TestFormatSize(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0", 1: "1", 1023: "1023", 1024: "1K", 1536: "1.5K", 4 << 20: "4M", 10 << 30: "10G", 3 << 39: "1.5T",
		1<<30 + 1: "1G", 1 << 62: "4E", -4096: "-4K", math.MaxInt64: "8E",
	} {
		if got := FormatSize(n); got != want {
			t.Errorf("FormatSize(%d) = %q, want %q", n, got, want)
		}
	}
}

// What is a whole number of its unit comes back as it was.
func TestSizeRoundTrip(t *testing.T) {
	seed := storetest.Seed(t.Logf)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 2000 {
		n := r.Int64N(1023) + 1
		n <<= 10 * r.IntN(6)
		got, err := ParseSize(FormatSize(n))
		if err != nil || got != n {
			t.Fatalf("%d became %q became %d, %v", n, FormatSize(n), got, err)
		}
	}
}

// FuzzParseSize: a size is refused as bad input, or is not negative.
func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"10G", "1.5T", "4096", "-1", "1e9", "8E"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if len(s) > 1<<10 { // nothing but its length is different
			return
		}
		if n, err := ParseSize(s); err != nil && !errors.Is(err, ErrInput) || err == nil && n < 0 {
			t.Fatalf("ParseSize(%q) = %d, %v", s, n, err)
		}
	})
}
