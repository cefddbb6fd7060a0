package memcached

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Auth is a user and password for servers that were started with -Y. It shows
// itself without the password, whichever way it is printed.
type Auth struct{ User, Password string }

// maxAuth is what memcached takes as user, blank and password (in 1.6).
const maxAuth = 512

// ParseAuth reads user:password, the format of the file that memcached -Y reads.
func ParseAuth(line string) (*Auth, error) {
	user, password, ok := strings.Cut(line, ":")
	switch {
	case !ok || user == "" || password == "":
		return nil, errors.New("want user:password, as in the file of memcached -Y")
	case len(line) > maxAuth:
		return nil, fmt.Errorf("user and password have more than %d bytes", maxAuth)
	case strings.ContainsFunc(line, func(r rune) bool { return r <= ' ' || r == 0x7f }):
		// A blank ends the password for memcached 1.6: it would refuse the right one.
		return nil, errors.New("user or password has a blank or another character that memcached does not take")
	}
	return &Auth{User: user, Password: password}, nil
}

// String implements fmt.Stringer.
func (a Auth) String() string { return a.User + ":***" }

// GoString implements fmt.GoStringer.
func (a Auth) GoString() string { return a.String() }

// MarshalText implements encoding.TextMarshaler.
func (a Auth) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// ErrAuth: the server wants a user and password, or other ones.
var ErrAuth = errors.New("the server refuses us")

// authenticate sends the password on a new connection, if there is one, and reads
// the answer.
func (s *server) authenticate(line io.ReadWriter) error {
	a := s.store.cfg.Auth
	if a == nil {
		return nil
	}
	secret := a.User + " " + a.Password
	if _, err := fmt.Fprintf(line, "set auth 0 0 %d\r\n%s\r\n", len(secret), secret); err != nil {
		return err
	}
	buf := make([]byte, 0, maxLine)
	for {
		n, err := line.Read(buf[len(buf):cap(buf)])
		if buf = buf[:len(buf)+n]; n == 0 && err != nil {
			return err
		}
		answer, _, err := cutLine(buf)
		switch {
		case err != nil:
			return err
		case answer == nil:
		case string(answer) == "STORED":
			return nil
		case bytes.HasPrefix(answer, []byte("CLIENT_ERROR")) || bytes.HasPrefix(answer, []byte("ERROR")):
			return fmt.Errorf("%w: user %s: %q", ErrAuth, a.User, answer)
		default:
			return errMalformed
		}
	}
}

// unauthenticated is what memcached -Y says to who did not.
const unauthenticated = "CLIENT_ERROR unauthenticated"
