package memcached

import (
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

// ErrUnprotected: the server serves everybody.
var ErrUnprotected = errors.New("the server asks for no password: start it with -Y, or unset KVBFS_MEMCACHED_AUTH and KVBFS_MEMCACHED_AUTH_FILE")

// unauthenticated is what memcached -Y says to who did not.
const unauthenticated = "CLIENT_ERROR unauthenticated"

// authenticate sends the password on a new connection, if there is one, and reads
// the answer. To a server without -Y the password would be an item, which everybody
// can read: so that is found out first.
func (s *server) authenticate(line io.ReadWriter) error {
	a := s.store.cfg.Auth
	if a == nil {
		return nil
	}
	answer, err := ask(line, "version\r\n")
	switch {
	case err != nil:
		return err
	case strings.HasPrefix(answer, "VERSION "):
		return ErrUnprotected
	case answer != unauthenticated:
		return fmt.Errorf("answer %q in place of a version or a refusal", answer)
	}
	secret := a.User + " " + a.Password
	answer, err = ask(line, fmt.Sprintf("set auth 0 0 %d\r\n%s\r\n", len(secret), secret))
	switch {
	case err != nil:
		return err
	case answer == "STORED":
		return nil
	case strings.HasPrefix(answer, "CLIENT_ERROR") || strings.HasPrefix(answer, "ERROR"):
		return fmt.Errorf("%w: user %s: %q", ErrAuth, a.User, answer)
	}
	return errMalformed
}

// ask sends a command whose answer is one line.
func ask(line io.ReadWriter, cmd string) (string, error) {
	if _, err := io.WriteString(line, cmd); err != nil {
		return "", err
	}
	buf := make([]byte, 0, maxLine)
	for {
		got, err := line.Read(buf[len(buf):cap(buf)])
		if buf = buf[:len(buf)+got]; got == 0 && err != nil {
			return "", err
		}
		answer, n, err := cutLine(buf)
		switch {
		case err != nil || n > 0 && n < len(buf):
			return "", errMalformed
		case n > 0:
			return string(answer), nil
		}
	}
}
