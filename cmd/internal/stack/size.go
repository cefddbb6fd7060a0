package stack

import (
	"math"
	"strconv"
	"strings"
)

// units of a size, by rising power of 1024.
const units = "KMGTPE"

// ParseSize reads 10G, 512M, 1.5T, 4096: bytes, or powers of 1024 with a unit of
// either case, which may be followed by B or iB. The error is an ErrInput.
func ParseSize(s string) (int64, error) {
	num, factor := strings.TrimSpace(s), int64(1)
	upper := strings.ToUpper(num)
	for _, suffix := range []string{"IB", "B"} {
		if rest, ok := strings.CutSuffix(upper, suffix); ok && rest != "" {
			upper = rest
			break
		}
	}
	num = upper
	if n := len(upper); n > 0 {
		if i := strings.IndexByte(units, upper[n-1]); i >= 0 {
			factor = 1 << (10 * (i + 1))
			num = upper[:n-1]
		}
	}
	bad := func(why string) (int64, error) {
		return 0, inputf("bad size %q: %s; write 10G, 512M, 1.5T or a number of bytes", s, why)
	}
	// Digits and at most one point: ParseFloat alone would take 1e3, 0x10 and inf.
	if num == "" || strings.Trim(num, "0123456789.") != "" || strings.Count(num, ".") > 1 || num == "." {
		return bad("not a size")
	}
	if whole, err := strconv.ParseInt(num, 10, 64); err == nil {
		if whole > math.MaxInt64/factor {
			return bad("too large")
		}
		return whole * factor, nil
	}
	f, err := strconv.ParseFloat(num, 64)
	if err != nil {
		return bad("not a size")
	}
	f *= float64(factor)
	// float64(MaxInt64) is one too many already.
	if f >= math.MaxInt64 {
		return bad("too large")
	}
	if f != math.Trunc(f) {
		return bad("not a whole number of bytes")
	}
	return int64(f), nil
}

// FormatSize writes a number of bytes as ParseSize reads it, shortened to one
// decimal where it is not a whole number of its unit.
func FormatSize(n int64) string {
	if n < 0 {
		return "-" + FormatSize(-max(n, -math.MaxInt64))
	}
	if n < 1024 {
		return strconv.FormatInt(n, 10)
	}
	i, unit := 0, int64(1024)
	for i < len(units)-1 && n/unit >= 1024 {
		i, unit = i+1, unit*1024
	}
	if n%unit == 0 {
		return strconv.FormatInt(n/unit, 10) + units[i:i+1]
	}
	text := strconv.FormatFloat(float64(n)/float64(unit), 'f', 1, 64)
	return strings.TrimSuffix(text, ".0") + units[i:i+1]
}
